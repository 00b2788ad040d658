"""How far one image has moved and grown against another, to a fraction of a pixel.

Phase correlation, of the images for the shift and of their spectra over (log radius, angle) for the scale
(Reddy and Chatterji, "An FFT-based technique for translation, rotation, and scale-invariant image
registration", 1996), finds the neighbourhood. Gauss-Newton on the brightness difference (Lucas and Kanade,
1981) finds the fraction: it weighs every pixel by itself, so a masked region has no edge that could pull the
answer towards zero, as it would through a Fourier transform. Brightness and contrast are fitted along, and what
fits nowhere (an edit that was not masked) loses its weight.

Legend: H W the images' size, h w the size a level works at, in pixels; x to the right, y down.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDES = (256, 1024)  # longest side of the two levels; the shift of a larger image is found on a smaller copy
_SMALLEST_SIDE = 16  # a level of a very long image is not scaled below this
_MARGIN = 4  # pixels of a level by which smoothing and interpolation spread what is masked out or outside
_STEPS = 30  # of Gauss-Newton at most
_CONVERGED = 1e-3  # pixels
_LEAST_SLOPE = 1 / 1024  # of an edge, in brightness per pixel of a level: a quarter of a grey level
_LEAST_EDGES = 16  # pixels of a level that are edges; fewer is no texture
_EVEN = 1e-3  # slopes that differ by less than this part are equally steep, a ramp's but for rounding
_LEAST_RATIO = 1e-3  # of the squared slopes along and across; less is stripes, along which no shift can be seen
_LEAST_SEEN = _LEAST_SLOPE**2 / 4  # squared slope along a motion per edge; 5 times that of rounding to 8 bits
_LEAST_CONFIDENCE = 0.2  # below, the images have no edges in common that a shift could be read from
_BETTER = 0.8  # a found start replaces "nothing moved" if it leaves less than this part of the disagreement
_ALIKE = 1e-4  # disagreement that is none: rounding to float32 leaves 1e-7, to 8 bits 1e-5
_EQUAL = 1e-3  # peaks that differ by less than this part of the highest are equally high
_LARGEST_SCALE = 0.3
_RADII, _ANGLES = 256, 180  # samples of a spectrum
_LOWEST, _HIGHEST = 0.02, 0.45  # their range, in cycles per pixel


@dataclass(frozen=True)
class Alignment:
    """Where the image's content lies, against the reference.

    dx: shift of the content in pixels, positive to the right; 0 for an identical image. Taken at the
        image's centre.
    dy: shift in pixels, positive downwards; 0 for an identical image.
    scale: size of the content as a factor about the image's centre, minus 1; positive is larger; 0 for an
        identical image.
    confidence: correlation of the edges of both images once aligned, 0..1; 1 for an identical image with
        texture. Below 0.2, and at 0 always (nothing to see: flat, or too little left by the mask), the shift and
        scale are unknown and given as 0. A shift along stripes cannot be seen and is 0 too.
    """

    dx: float
    dy: float
    scale: float
    confidence: float

    @property
    def known(self) -> bool:
        """Whether there was anything that a shift could be read from."""
        return self.confidence >= _LEAST_CONFIDENCE


_UNKNOWN = Alignment(0.0, 0.0, 0.0, 0.0)


def align(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Alignment:
    """Measure shift and scale of `image` against `reference`, both brightness [H, W] in 0..1.

    `mask` [H, W] bool is true at the pixels to look at. Accurate to about 0.02 px and 0.0003 on images of 128
    pixels and more, up to a tenth of the side and a scale of 0.2; not meant for rotations.
    """
    coarse, fine = (_Level.of(image.float(), reference.float(), mask, side) for side in _SIDES)
    if not fine.has_texture:
        return _UNKNOWN
    if not (fine.weight * (fine.moving - fine.fixed)).any():
        return Alignment(0.0, 0.0, 0.0, 1.0)
    best = coarse.refine(_Motion())
    for start in coarse.starts():
        found = coarse.refine(start)
        if 1 - coarse.agreement(found) < _BETTER * (1 - coarse.agreement(best)) - _ALIKE:
            best = found
    if fine.fixed.shape != coarse.fixed.shape:
        best = fine.refine(best)
    confidence = fine.agreement(best)
    if confidence < _LEAST_CONFIDENCE:
        return Alignment(0.0, 0.0, 0.0, confidence)
    return Alignment(best.dx, best.dy, best.scale, confidence)


def laid_back(image: Tensor, found: Alignment) -> tuple[Tensor, Tensor]:
    """Return a brightness [H, W] with its shift and scale undone, and where it can be seen then, bool [H, W].

    `found` is in pixels of this image, which should be smooth enough to be interpolated: scale it down first.
    """
    level = _Level(image, image, torch.ones_like(image), *image.shape)
    aligned, weight = level.warp(_Motion(found.dx, found.dy, found.scale))
    return aligned, weight > 0


@dataclass(frozen=True)
class _Motion:
    """Shift in pixels of the whole image, and scale - 1."""

    dx: float = 0.0
    dy: float = 0.0
    scale: float = 0.0


@dataclass(frozen=True)
class _Level:
    """Both images at one size, smoothed so that interpolation is exact: fixed, moving, weight [h, w]."""

    fixed: Tensor
    moving: Tensor
    weight: Tensor  # 1 where both images may be looked at, else 0
    height: int  # of the whole image
    width: int

    @classmethod
    def of(cls, image: Tensor, reference: Tensor, mask: Tensor | None, side: int) -> "_Level":
        size = [max(round(n * min(1, side / max(image.shape))), min(n, _SMALLEST_SIDE)) for n in image.shape]
        both = torch.stack([reference, image])[:, None]
        small = F.interpolate(both, size=size, mode="bilinear", antialias=True)
        fixed, moving = _smooth(small)[:, 0]
        hidden = torch.zeros_like(fixed)
        if mask is not None:
            hidden = F.adaptive_max_pool2d((~mask)[None].to(image.dtype), size)[0]
        hidden = F.pad(hidden, (_MARGIN,) * 4, value=1.0)
        weight = 1 - F.max_pool2d(hidden[None], 2 * _MARGIN + 1, stride=1)[0]
        return cls(fixed, moving, weight, *image.shape)

    @property
    def has_texture(self) -> bool:
        """Say whether there are edges that brightness and contrast do not explain: a ramp has no position."""
        edges = self._edges()
        return int(edges.sum()) >= _LEAST_EDGES and bool(self._visible().any())

    def _edges(self) -> Tensor:
        """Return true [h, w] where the fixed image may be looked at and is steeper than usual."""
        steep = sum(slope.square() for slope in _slopes(self.fixed)) * self.weight
        usual = steep.sum() / self.weight.sum().clamp(min=1)
        return steep > (usual * (1 - _EVEN)).clamp(min=_LEAST_SLOPE**2)

    @property
    def _reach(self) -> float:
        """Pixels that a unit of scale moves a typical pixel by."""
        return math.hypot(*self.fixed.shape) / 4

    def _slopes(self) -> Tensor:
        """Return the change of brightness [3, h*w] by a pixel right, one down, and a scale that moves as much."""
        x, y = self._coordinates()
        slope_x, slope_y = _slopes(self.fixed)
        return torch.stack([slope_x, slope_y, (x * slope_x + y * slope_y) / self._reach]).flatten(1)

    def _ground(self) -> Tensor:
        """Return what no motion explains [2, h*w]: brightness, and contrast about the mean."""
        mean = (self.fixed * self.weight).sum() / self.weight.sum().clamp(min=1)
        return torch.stack([torch.ones_like(self.fixed), self.fixed - mean]).flatten(1)

    def _visible(self) -> Tensor:
        """Return the projection [3, 3] on the motions that can be seen, in the units of `_slopes`."""
        weight = self.weight.flatten()
        free = _without(self._ground(), self._slopes(), weight)
        normal = ((free * weight) @ free.T).double()
        return _inverse(normal, self._edges().sum()) @ normal

    @property
    def _ratio(self) -> tuple[float, float]:
        """Pixels of this level for one of the whole image, along x and y."""
        return self.fixed.shape[1] / self.width, self.fixed.shape[0] / self.height

    def _coordinates(self) -> tuple[Tensor, Tensor]:
        """Return the distance of each column [1, w] and row [h, 1] from the centre, in pixels."""
        height, width = self.fixed.shape
        x, y = (torch.arange(n, device=self.fixed.device) - (n - 1) / 2 for n in (width, height))
        return x[None], y[:, None]

    def warp(self, motion: _Motion) -> tuple[Tensor, Tensor]:
        """Return the moving image laid back over the fixed one, and the weight of what is seen there."""
        x, y = (axis.flatten() * (1 + motion.scale) for axis in self._coordinates())
        x = x + motion.dx * self._ratio[0] + (len(x) - 1) / 2
        y = y + motion.dy * self._ratio[1] + (len(y) - 1) / 2
        aligned = _cubic(y) @ self.moving @ _cubic(x).T
        seen = _linear(y) @ self.weight @ _linear(x).T > 0.99
        return aligned, self.weight * seen

    def agreement(self, motion: _Motion) -> float:
        """Correlation of the edges under this motion, 0..1."""
        aligned, weight = self.warp(motion)
        a, b = torch.stack(_slopes(aligned)), torch.stack(_slopes(self.fixed))
        norm = ((a * a * weight).sum() * (b * b * weight).sum()).sqrt()
        return float(((a * b * weight).sum() / norm.clamp(min=1e-12)).clamp(0, 1))

    def refine(self, motion: _Motion) -> _Motion:
        """Gauss-Newton from `motion` to the least difference in brightness."""
        slopes, ground, reach = self._slopes(), self._ground(), self._reach
        edges = self._edges().flatten()
        for _ in range(_STEPS):
            aligned, weight = (plane.flatten() for plane in self.warp(motion))
            seen_edges = edges & (weight > 0)
            if seen_edges.sum() < _LEAST_EDGES:
                return _Motion()
            error = _without(ground, (aligned - self.fixed.flatten())[None], weight)[0]
            weight = weight * _robust(error, seen_edges)
            free = _without(ground, slopes, weight)
            error = _without(ground, error[None], weight)[0]
            normal = ((free * weight) @ free.T).double()  # [3, 3]
            step = -_inverse(normal, seen_edges.sum()) @ (free @ (weight * error)).double()
            dx, dy, grown = step.tolist()
            motion = _Motion(
                motion.dx + dx / self._ratio[0],
                motion.dy + dy / self._ratio[1],
                min(max(motion.scale + grown / reach, -_LARGEST_SCALE), _LARGEST_SCALE),
            )
            if step.abs().max() < _CONVERGED:
                break
        return motion

    def starts(self) -> list[_Motion]:
        """Motions that phase correlation proposes: shift alone, and scale with the shift that then remains."""
        scale, visible = _scale(*self._tapered(_Motion())), self._visible()
        return [self._shifted(_Motion(), visible), self._shifted(_Motion(scale=scale), visible)]

    def _tapered(self, motion: _Motion) -> tuple[Tensor, Tensor]:
        """Return fixed and aligned image, equal (0) wherever either may not be looked at, fading in from there."""
        aligned, weight = self.warp(motion)
        height, width = weight.shape
        fade = 2 * (max(height, width) // 32) + 1
        soft = weight * F.avg_pool2d(weight[None], fade, 1, fade // 2, count_include_pad=True)[0].square()
        window = soft * torch.outer(torch.hann_window(height), torch.hann_window(width)).to(soft)
        total = window.sum().clamp(min=1e-6)
        fixed, aligned = ((plane - (plane * window).sum() / total) * window for plane in (self.fixed, aligned))
        return fixed, aligned

    def _shifted(self, motion: _Motion, visible: Tensor) -> _Motion:
        """Return the scale and the least shift that fit best, without what cannot be seen, as along stripes."""
        peaks = _phase_correlation(*self._tapered(motion))
        positions = (peaks >= (1 - _EQUAL) * peaks.max()).nonzero().tolist()
        shifts = ([_signed(index, length) for index, length in zip(position, peaks.shape)] for position in positions)
        dy, dx = min(shifts, key=lambda shift: (math.hypot(*shift), shift))
        grown = 1 + motion.scale
        found = torch.tensor([grown * dx, grown * dy, motion.scale * self._reach]).to(visible)
        dx, dy, scale = (visible @ found).tolist()
        return _Motion(dx / self._ratio[0], dy / self._ratio[1], scale / self._reach)


def _smooth(planes: Tensor) -> Tensor:
    """Gaussian blur by one pixel of [N, 1, h, w], edges repeated."""
    taps = torch.exp(-0.5 * torch.arange(-3.0, 4.0, device=planes.device) ** 2)
    taps = (taps / taps.sum()).to(planes.dtype)
    planes = F.conv2d(F.pad(planes, (3, 3, 0, 0), mode="replicate"), taps.view(1, 1, 1, 7))
    return F.conv2d(F.pad(planes, (0, 0, 3, 3), mode="replicate"), taps.view(1, 1, 7, 1))


def _cubic(positions: Tensor) -> Tensor:
    """Return the matrix [n, n] that samples a line of n pixels at `positions` by cubic convolution.

    Keys 1981, a = -1/2; torch's bicubic has a = -3/4, which shifts: 0.3 px is found as 0.26.
    """
    far = _distance(positions).clamp(max=2)
    return torch.where(far < 1, (1.5 * far - 2.5) * far * far + 1, ((2.5 - 0.5 * far) * far - 4) * far + 2)


def _linear(positions: Tensor) -> Tensor:
    return (1 - _distance(positions)).clamp(min=0)


def _distance(positions: Tensor) -> Tensor:
    return (positions[:, None] - torch.arange(len(positions), device=positions.device)).abs()


def _slopes(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Return derivatives along x and y of [h, w], per pixel."""
    slope_y, slope_x = torch.gradient(plane)
    return slope_x, slope_y


def _without(ground: Tensor, planes: Tensor, weight: Tensor) -> Tensor:
    """`planes` [N, P] less what the rows of `ground` [2, P] explain of them, by weighted least squares."""
    gram = ((ground * weight) @ ground.T).double()
    share = torch.linalg.pinv(gram, hermitian=True) @ (ground * weight @ planes.mT).double()  # [2, N]
    return planes - share.to(planes.dtype).mT @ ground


def _inverse(normal: Tensor, edges: Tensor) -> Tensor:
    """Invert the normal matrix [3, 3] along the motions that the edges show; the others are 0."""
    return torch.linalg.pinv(normal, atol=_LEAST_SEEN * edges, rtol=_LEAST_RATIO, hermitian=True)


def _robust(error: Tensor, edges: Tensor) -> Tensor:
    """Cauchy weights: near 1 for the usual error at edges, near 0 for what does not fit."""
    usual = 1.4826 * error[edges].abs().median().clamp(min=1e-4)
    return 1 / (1 + (error / (2.385 * usual)).square())


def _phase_correlation(fixed: Tensor, moving: Tensor) -> Tensor:
    """[h, w], largest at the (row, column) by which `moving` lies lower and more to the right."""
    product = torch.fft.rfft2(moving) * torch.fft.rfft2(fixed).conj()
    strength = product.abs()
    return torch.fft.irfft2(product / (strength + strength.mean()).clamp(min=1e-20), s=fixed.shape)


def _signed(index: int, length: int) -> int:
    return index if index <= length // 2 else index - length


def _scale(fixed: Tensor, moving: Tensor) -> float:
    """Scale - 1 by phase correlation of the spectra's magnitudes over (angle, log radius)."""
    height, width = fixed.shape
    device = fixed.device
    radius = torch.logspace(math.log10(_LOWEST), math.log10(_HIGHEST), _RADII, device=device)  # cycles per pixel
    angle = torch.arange(_ANGLES, device=device) * (math.pi / _ANGLES)
    # the zero frequency lies at index n // 2
    x = (2 * (torch.cos(angle)[:, None] * radius * width + width // 2) + 1) / width - 1
    y = (2 * (torch.sin(angle)[:, None] * radius * height + height // 2) + 1) / height - 1
    grid = torch.stack([x, y], dim=-1).expand(2, -1, -1, -1)
    magnitude = torch.fft.fftshift(torch.fft.fft2(torch.stack([fixed, moving])).abs(), dim=(-2, -1)).log1p()
    polar = F.grid_sample(magnitude[:, None], grid, mode="bilinear", align_corners=False)[:, 0]  # [2, angle, radius]
    polar = polar - polar.mean(dim=(1, 2), keepdim=True)
    polar = polar * torch.hann_window(_RADII, device=device)
    unrotated = _phase_correlation(polar[0], polar[1])[0]  # [radius], at angle 0
    step = math.log(_HIGHEST / _LOWEST) / (_RADII - 1)
    furthest = int(math.log1p(_LARGEST_SCALE) / step)
    shifts = torch.arange(-furthest, furthest + 1, device=device)
    equal = shifts[unrotated[shifts] >= (1 - _EQUAL) * unrotated[shifts].max()].tolist()
    # an image that grows by k has its frequencies divided by k
    return math.exp(-min(equal, key=lambda shift: (abs(shift), shift)) * step) - 1
