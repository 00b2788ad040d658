"""How far an image has drifted from a reference: damage, colour, position and sharpness, each by itself.

In torch alone: the Drift node runs inside ComfyUI, where scikit-image and torchmetrics need not exist, and the
benchmark must measure the same. The definitions are those of scikit-image where it has the metric, and the tests
hold them to it. None of them looks at an image without the reference: such metrics can improve while it rots.

An image is [3, H, W], sRGB, 0..1; a mask [H, W] is 1 (or True) where the image should be preserved, and
nothing outside it has any influence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AnchorEditError
from .registration import Alignment, align

SMALLEST_SIDE = 16  # pixels; less holds no window of SSIM

_LUMA = (0.2125, 0.7154, 0.0721)  # of R, G, B: as scikit-image's rgb2gray
_XYZ_OF_RGB = (  # sRGB, IEC 61966-2-1, each row divided by the white D65 (2 degrees)
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
_WINDOW_SIGMA, _WINDOW_RADIUS = 1.5, 5  # pixels: the Gaussian window of Wang et al. 2004
_C1, _C2 = 0.01**2, 0.03**2
_STRIP_PIXELS = 2**18  # worked on at once, so that it stays in the processor's cache
_COLOUR_PIXELS = 2**21  # enough for means and a percentile
_FAINT = (1 / 255) ** 2 / 12  # energy of rounding to 8 bits: less is not told from none


@dataclass(frozen=True)
class ColourDrift:
    """Change of colour in CIELAB (D65, 2 degrees), mean over pixels; 0 for an identical image.

    dl: lightness L* (range 0..100), positive is lighter.
    da: a*, positive is redder, negative greener.
    db: b*, positive is yellower, negative bluer.
    delta_e: mean CIE76 distance of a pixel from the reference's, never negative; about 2 can just be seen. It
        counts what cancels in the means, and shifted or blurred edges too.
    p99_l: change of the 99th percentile of L*, the highlights; positive is brighter.
    """

    dl: float
    da: float
    db: float
    delta_e: float
    p99_l: float


@dataclass(frozen=True)
class Drift(ColourDrift, Alignment):
    """Hold all drift of an image against its reference.

    Every field is 0 for an identical image, but `confidence`, which is 1. The fields of colour are documented at
    `ColourDrift`, those of position (dx, dy, scale, confidence) at `Alignment`.

    l1: mean absolute difference, 0..1.
    rmse: root mean square difference, 0..1; `psnr` is the same in dB.
    ssim_loss: 1 - SSIM, 0..2.
    sharpness: log2 of the high-frequency energy over the reference's: -1 is half of it (blurrier), +1 twice
        (sharpened, or noisier).
    """

    l1: float
    rmse: float
    ssim_loss: float
    sharpness: float

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB; infinite for an identical image."""
        return _decibel(self.rmse)

    @property
    def ssim(self) -> float:
        """Structural similarity, -1..1; 1 for an identical image."""
        return 1 - self.ssim_loss


def drift(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Drift:
    """Measure `image` [3, H, W] against `reference` [3, H, W], where `mask` [H, W] says it should be preserved.

    Values outside 0..1 are clipped, as in a file. Raises AnchorEditError if the sizes differ or are below 16
    pixels, a value is not finite, or the mask leaves nothing to measure.
    """
    _check(image, reference, mask)
    for name, each in (("image", image), ("reference", reference)):
        if not each.sum().isfinite():
            raise AnchorEditError(f"{name} holds NaN or infinite values", "Run the model or VAE in bfloat16 or float32")
    image, reference = image.float().clamp(0, 1), reference.float().clamp(0, 1)
    return Drift(
        l1=l1(image, reference, mask),
        rmse=rmse(image, reference, mask),
        ssim_loss=1 - ssim(image, reference, mask),
        sharpness=sharpness(image, reference, mask),
        **vars(colour_drift(image, reference, mask)),
        **vars(alignment(image, reference, mask)),
    )


def l1(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """Return the mean absolute difference, 0..1; 0 for an identical image."""
    _check(image, reference, mask)
    (mean,) = _mean(lambda x, y, _: (x - y).abs().mean(dim=0, keepdim=True), image, reference, mask)
    return mean


def rmse(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """Return the root mean square difference, 0..1; 0 for an identical image."""
    _check(image, reference, mask)
    (mean,) = _mean(lambda x, y, _: (x - y).square().mean(dim=0, keepdim=True), image, reference, mask)
    return math.sqrt(mean)


def psnr(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB; infinite for an identical image."""
    return _decibel(rmse(image, reference, mask))


def ssim(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """Return the structural similarity of the grey images, -1..1; 1 for an identical image.

    Wang, Bovik, Sheikh and Simoncelli 2004: Gaussian windows, sigma 1.5, 11x11. With a mask a window sees
    the mask's pixels only, and windows are centred on such pixels.
    """
    _check(image, reference, mask)
    (mean,) = _mean(_similarity, image, reference, mask, halo=_WINDOW_RADIUS)
    return mean


def sharpness(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """Return log2 of the high-frequency energy over the reference's; 0 for an identical image, -1 for half.

    The energy is that of the grey image less its Gaussian blur (sigma 1.5): details below about 8 pixels.
    What 8 bits cannot hold counts as none, so two flat images give 0.
    """
    _check(image, reference, mask)
    after, before = _mean(_detail, image, reference, mask, halo=_WINDOW_RADIUS)
    return math.log2((after + _FAINT) / (before + _FAINT))


def colour_drift(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> ColourDrift:
    """Return the mean change of colour and of the highlights, in CIELAB.

    Of an image beyond 2 megapixels every second (third ...) pixel each way is read.
    """
    _check(image, reference, mask)
    step = 1 + math.isqrt(image[0].numel() // _COLOUR_PIXELS)
    keep = None if mask is None else mask > 0.5
    if keep is not None and keep[::step, ::step].any():
        keep = keep[::step, ::step]
    elif keep is not None:
        step = 1
    sampled = (each[:, ::step, ::step] for each in (image, reference))
    after, before = (lab(each.flatten(1) if keep is None else each[:, keep]) for each in sampled)  # [3, P]
    change = after - before
    dl, da, db = change.mean(dim=1).tolist()
    delta_e = float(change.square().sum(dim=0).sqrt().mean())
    return ColourDrift(dl, da, db, delta_e, p99_l=_p99(after[0]) - _p99(before[0]))


def alignment(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Alignment:
    """Return shift, scale and the confidence in them."""
    _check(image, reference, mask)
    return align(grey(image), grey(reference), None if mask is None else mask > 0.5)


def lab(image: Tensor) -> Tensor:
    """Convert sRGB [3, ...] in 0..1 to CIELAB [3, ...], D65, 2 degrees."""
    linear = torch.where(image > 0.04045, ((image.clamp(min=0) + 0.055) / 1.055) ** 2.4, image / 12.92)
    xyz = (linear.new_tensor(_XYZ_OF_RGB) @ linear.flatten(1)).view_as(linear)
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=0) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _check(image: Tensor, reference: Tensor, mask: Tensor | None) -> None:
    for name, each in (("image", image), ("reference", reference)):
        if each.ndim != 3 or each.shape[0] != 3 or not each.is_floating_point():
            raise ValueError(f"{name} must be float [3, height, width], not {each.dtype} {list(each.shape)}")
    height, width = image.shape[1:]
    if image.shape != reference.shape:
        raise AnchorEditError(
            f"image is {width}x{height} but the reference {reference.shape[2]}x{reference.shape[1]}",
            "Scale one to the size of the other",
        )
    if min(height, width) < SMALLEST_SIDE:
        raise AnchorEditError(f"image is {width}x{height} pixels", f"Drift needs at least {SMALLEST_SIDE} each way")
    if mask is None:
        return
    if mask.shape != image.shape[1:]:
        raise AnchorEditError(f"mask is {list(mask.shape)} but the image [{height}, {width}]", "Use one of its size")
    if not (mask > 0.5).any():
        raise AnchorEditError("mask leaves no pixel to measure", "Measure without a mask, or mask less of the image")


def _mean(
    local: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    image: Tensor,
    reference: Tensor,
    mask: Tensor | None,
    halo: int = 0,
) -> list[float]:
    """Return the means of the K planes `local(image, reference, mask)` [K, H, W] over the mask's pixels.

    Strip by strip, which is several times faster than a large image at once. `halo` is how far `local`
    looks around a pixel; pixels nearer to the image's border than that are not counted, unless there are no
    others.
    """
    height, width = image.shape[1:]
    counted = _counted(image, mask, halo)
    rows = max(1, _STRIP_PIXELS // width)
    total = 0.0
    for top in range(0, height, rows):
        above = max(top - halo, 0)
        around = slice(above, top + rows + halo)
        planes = local(image[:, around], reference[:, around], None if mask is None else mask[around])
        planes = planes[:, top - above : top - above + rows]
        total = total + (planes * counted[top : top + rows]).sum(dim=(1, 2)).double()
    return (total / counted.sum()).tolist()


def _counted(image: Tensor, mask: Tensor | None, border: int) -> Tensor:
    """Return true [H, W] at the mask's pixels further than `border` from the edge, or at all if there are no such."""
    kept = torch.ones_like(image[0], dtype=torch.bool) if mask is None else mask > 0.5
    inner = F.pad(kept[border : -border or None, border : -border or None], (border,) * 4)
    return inner if inner.any() else kept


def _similarity(image: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    """Return the SSIM of the window about each pixel [1, H, W]."""
    x, y = grey(image), grey(reference)
    mean_x, mean_y, squares, product = _windows(torch.stack([x, y, x * x + y * y, x * y]), mask)
    means, mean_squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    alike = (2 * means + _C1) * (2 * (product - means) + _C2)
    return (alike / ((mean_squares + _C1) * (squares - mean_squares + _C2)))[None]


def _detail(image: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    """Return the high-frequency energy about each pixel of both images [2, H, W]."""
    both = torch.stack([grey(image), grey(reference)])
    return (both - _windows(both, mask)).square()


def _p99(values: Tensor) -> float:
    return float(values.kthvalue(math.ceil(0.99 * len(values))).values)


def grey(image: Tensor) -> Tensor:
    """Return the brightness [H, W] of an image [3, H, W]."""
    return torch.tensordot(image.new_tensor(_LUMA), image, dims=1)


def _windows(planes: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of [N, H, W] in the Gaussian window about each pixel, over the mask's pixels.

    Without a mask, windows that reach over the border are meaningless and not counted.
    """
    if mask is None:
        return _blurred(planes)
    weight = (mask > 0.5)[None].to(planes.dtype)
    return _blurred(planes * weight) / _blurred(weight).clamp(min=1e-6)


def _blurred(planes: Tensor) -> Tensor:
    """Convolve [N, H, W] with the Gaussian window, zeros around."""
    radius = _WINDOW_RADIUS
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / _WINDOW_SIGMA) ** 2)
    taps = (taps / taps.sum()).tolist()
    for dim, pad in ((1, (0, 0, radius, radius)), (2, (radius, radius))):
        length = planes.shape[dim]
        planes = F.pad(planes, pad)
        # a sum of shifted planes: several times faster here than a convolution
        summed = planes.narrow(dim, 0, length) * taps[0]
        for offset, tap in enumerate(taps[1:], start=1):
            summed.add_(planes.narrow(dim, offset, length), alpha=tap)
        planes = summed
    return planes


def _decibel(rmse: float) -> float:
    return math.inf if rmse == 0 else -20 * math.log10(rmse)
