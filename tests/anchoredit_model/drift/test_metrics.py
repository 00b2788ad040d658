"""Drift metrics: known answers, scikit-image as reference, and masked-out pixels without influence."""

import json
import math
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from anchoredit_model.drift.metrics import (
    Drift,
    alignment,
    colour_drift,
    drift,
    l1,
    lab,
    psnr,
    rmse,
    sharpness,
    ssim,
)
from anchoredit_model.errors import AnchorEditError
from studio.render import render
from studio.scene import sample_scenes

SHIFT, SCALE = 0.05, 0.002  # largest errors of shift in pixels and of scale as a factor


def waves(height, width, dx=0.0, dy=0.0, scale=0.0, seed=0):
    """An image defined between its pixels: random plane waves, shifted and scaled exactly."""
    g = torch.Generator().manual_seed(seed)
    y = ((torch.arange(height) - (height - 1) / 2 - dy) / (1 + scale))[:, None]
    x = ((torch.arange(width) - (width - 1) / 2 - dx) / (1 + scale))[None, :]
    image = torch.full((3, height, width), 0.5)
    for _ in range(40):
        fx, fy = (0.24 * torch.rand(2, generator=g) - 0.12).tolist()
        phase = 6.28 * torch.rand(3, 1, 1, generator=g)
        image = image + 0.025 * torch.sin(6.283185 * (fx * x + fy * y) + phase)
    return image.clamp(0, 1)


def studio(height, width, seed=0):
    return render(sample_scenes(1, torch.Generator().manual_seed(seed)), height, width)[0]


def photo(name):
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(getattr(data, name)()).permute(2, 0, 1).float() / 255


IMAGES = {
    "waves": lambda: waves(128, 176),
    "studio": lambda: studio(128, 128),
    "studio wide": lambda: studio(96, 256, seed=1),
    "astronaut": lambda: photo("astronaut")[:, 40:240, 120:320],
    "coffee": lambda: photo("coffee"),
}
images = pytest.mark.parametrize("name", IMAGES)


def moved(image, dx, dy):
    """Shifted by a fraction of a pixel through its Fourier transform: exact, but for the edges that wrap around."""
    fy, fx = torch.fft.fftfreq(image.shape[1])[:, None], torch.fft.fftfreq(image.shape[2])
    return torch.fft.ifft2(torch.fft.fft2(image) * torch.exp(-2j * math.pi * (fx * dx + fy * dy))).real


def grown(image, factor):
    transform = pytest.importorskip("skimage.transform")
    (height, width), back = image.shape[1:], 1 / factor
    matrix = np.array([[back, 0, (1 - back) * (width - 1) / 2], [0, back, (1 - back) * (height - 1) / 2], [0, 0, 1]])
    return channels(transform.warp(numpy(image), matrix, order=5, mode="reflect"))


def blurred(image, sigma):
    taps = torch.exp(-0.5 * (torch.arange(-12.0, 13.0) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    image = F.conv2d(F.pad(image[None], (12, 12, 0, 0), mode="reflect"), taps, groups=3)
    return F.conv2d(F.pad(image, (0, 0, 12, 12), mode="reflect"), taps.mT, groups=3)[0]


def noise(image, seed=0):
    return torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))


def numpy(image):
    return image.permute(1, 2, 0).double().numpy()


def channels(array):
    return torch.from_numpy(array).permute(2, 0, 1).float()


def placed(found, dx=0.0, dy=0.0, scale=0.0):
    assert (found.dx, found.dy) == pytest.approx((dx, dy), abs=SHIFT)
    assert found.scale == pytest.approx(scale, abs=SCALE)
    return True


@pytest.mark.slow
@images
@pytest.mark.parametrize("masked", [False, True])
def test_an_identical_copy_has_no_drift(name, masked):
    image = IMAGES[name]()
    mask = None
    if masked:
        mask = torch.ones(image.shape[1:])
        mask[30:60, 30:90] = 0
    found = drift(image.clone(), image, mask)
    expected = {field.name: 0.0 for field in fields(Drift)} | {"confidence": 1.0}
    assert asdict(found) == expected
    assert found.psnr == math.inf and found.ssim == 1
    json.dumps(asdict(found), allow_nan=False)


# --- Position


@pytest.mark.slow
@images
@pytest.mark.parametrize("dx, dy", [(0.3, 0.0), (-0.45, 0.2), (3.7, -5.25)])
def test_shift(name, dx, dy):
    image = IMAGES[name]()
    assert placed(alignment(moved(image, dx, dy), image), dx, dy)


def test_shift_right_and_down_is_positive():
    image = studio(96, 128)
    assert placed(alignment(image.roll((2, 5), dims=(1, 2)), image), 5, 2)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.01, -0.01, 0.002, 0.1, -0.15])
def test_scale(scale):
    assert placed(alignment(waves(128, 176, scale=scale), waves(128, 176)), scale=scale)


@pytest.mark.slow
@images
def test_scale_of_images(name):
    image = IMAGES[name]()
    assert placed(alignment(grown(image, 1.01), image), scale=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "height, width, dx, dy, scale",
    [(300, 200, 7.6, -4.2, 0.03), (900, 1400, 1.3, 0.6, -0.004), (1200, 96, -0.4, 3.3, 0.002)],
)
def test_shift_and_scale_at_any_size(height, width, dx, dy, scale):
    assert placed(alignment(waves(height, width, dx, dy, scale), waves(height, width)), dx, dy, scale)


@pytest.mark.slow
@pytest.mark.parametrize("dx, dy, scale", [(40, 25, 0), (0, 0, 0.2), (15, -20, 0.1), (30, 10, -0.15)])
def test_large_shift_and_scale(dx, dy, scale):
    """Shifts of several wavelengths, which only phase correlation finds."""
    height, width = 300, 320
    assert placed(alignment(waves(height, width, dx, dy, scale), waves(height, width)), dx, dy, scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda image: image.clamp(0, 1) ** 1.05,
        lambda image: 0.8 * image + 0.15,
        lambda image: blurred(image, 1.5),
        lambda image: image + 0.03 * noise(image),
    ],
    ids=["gamma", "contrast", "blur", "noise"],
)
@pytest.mark.parametrize("name", ["waves", "studio", "astronaut"])
def test_other_damage_is_not_reported_as_shift(name, damage):
    image = IMAGES[name]()
    assert placed(alignment(damage(image), image))
    assert placed(alignment(damage(moved(image, 0.3, -0.2)), image), 0.3, -0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["waves", "astronaut", "coffee"])
@pytest.mark.parametrize("dx, dy", [(0.0, 0.0), (0.3, -0.2), (4.5, 2.25)])
def test_masked_subject_motion_is_not_reported_as_shift(name, dx, dy):
    image = IMAGES[name]()
    height, width = image.shape[1:]
    rows, columns = slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 5)
    edited = moved(image, dx, dy)
    edited[:, rows, columns] = 1 - image.roll((9, 14), dims=(1, 2))[:, rows, columns]  # with a hard edge
    mask = torch.ones(height, width)
    mask[rows, columns] = 0
    assert placed(alignment(edited, image, mask), dx, dy)


def test_small_unmasked_edit_does_not_affect_the_shift():
    image = IMAGES["astronaut"]()
    edited = moved(image, 0.3, -0.2)
    edited[:, 60:120, 60:120] = image[:, 68:128, 66:126]
    assert placed(alignment(edited, image), 0.3, -0.2)


@pytest.mark.parametrize("height, width", [(16, 16), (32, 32), (31, 200), (16, 3000)])
def test_flat_images_have_unknown_shift(height, width):
    flat = torch.full((3, height, width), 0.5)
    for image in (flat, flat + 0.2, flat * torch.linspace(0.999, 1, width)):
        found = alignment(image, flat)
        assert (found.dx, found.dy, found.scale, found.confidence) == (0, 0, 0, 0)
    assert sharpness(flat + 0.2, flat) == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "image, reference",
    [
        (waves(128, 128), waves(128, 128, seed=1)),
        (noise(torch.empty(3, 64, 64)).clamp(0, 1), torch.full((3, 64, 64), 0.5)),
        (torch.full((3, 64, 64), 0.5), studio(64, 64)),
    ],
    ids=["another image", "noise", "texture lost"],
)
def test_unrelated_images_have_unknown_shift(image, reference):
    found = alignment(image, reference)
    assert (found.dx, found.dy, found.scale) == (0, 0, 0)
    assert found.confidence < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("tilt", [0.0, 0.6, 1.2])
def test_shift_along_stripes_is_reported_as_zero(tilt):
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    across = (x * math.sin(tilt) + y * math.cos(tilt)).expand(3, 128, 128)
    found = alignment(0.5 + 0.3 * torch.sin(0.4 * (across - 0.3)), 0.5 + 0.3 * torch.sin(0.4 * across))
    assert placed(found, 0.3 * math.sin(tilt), 0.3 * math.cos(tilt))


def test_small_images():
    image = studio(32, 32)
    found = alignment(moved(image, 0.3, -0.2), image)
    assert (found.dx, found.dy) == pytest.approx((0.3, -0.2), abs=0.1)
    mask = torch.zeros(32, 32)
    mask[:6] = 1  # too little to find a shift in
    assert all(math.isfinite(value) for value in asdict(drift(moved(image, 0.3, -0.2), image, mask)).values())


# --- Damage, colour, sharpness


def damaged():
    image = photo("coffee")[:, 50:250, 100:330]
    return image, (blurred(image, 0.8) ** 1.05 + 0.02 * noise(image)).clamp(0, 1)


def test_damage_equals_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    grey = pytest.importorskip("skimage.color").rgb2gray
    image, after = damaged()
    a, b = numpy(after), numpy(image)
    assert psnr(after, image) == pytest.approx(metrics.peak_signal_noise_ratio(b, a, data_range=1), abs=1e-3)
    assert rmse(after, image) == pytest.approx(math.sqrt(metrics.mean_squared_error(b, a)), abs=1e-6)
    assert l1(after, image) == pytest.approx(np.abs(a - b).mean(), abs=1e-6)
    wanted = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    assert ssim(after, image) == pytest.approx(metrics.structural_similarity(grey(b), grey(a), **wanted), abs=1e-5)


def test_colour_equals_scikit_image():
    color = pytest.importorskip("skimage.color")
    image, after = damaged()
    a, b = color.rgb2lab(numpy(after)), color.rgb2lab(numpy(image))
    assert np.abs(lab(image).permute(1, 2, 0).numpy() - b).max() < 0.02
    found = colour_drift(after, image)
    assert (found.dl, found.da, found.db) == pytest.approx((a - b).mean(axis=(0, 1)), abs=1e-3)
    assert found.delta_e == pytest.approx(color.deltaE_cie76(a, b).mean(), abs=1e-3)
    p99 = np.percentile(a[..., 0], 99) - np.percentile(b[..., 0], 99)
    assert found.p99_l == pytest.approx(p99, abs=0.02)


def test_gamma_of_a_grey():
    def lightness(level):  # of a grey above 8 %
        return 116 * ((level + 0.055) / 1.055) ** (2.4 / 3) - 16

    grey = torch.full((3, 64, 64), 0.5)
    expected = lightness(0.5**1.05) - lightness(0.5)
    found = drift(grey**1.05, grey)
    assert expected < -1.5
    assert (found.dl, found.p99_l, found.delta_e) == pytest.approx((expected, expected, -expected), abs=1e-3)
    assert (found.da, found.db, found.sharpness) == pytest.approx((0, 0, 0), abs=1e-3)
    assert found.l1 == pytest.approx(0.5 - 0.5**1.05, abs=1e-6)


def test_signs_of_colour_drift():
    image = torch.full((3, 32, 32), 0.5)
    red, blue = image.clone(), image.clone()
    red[0] += 0.1
    blue[2] += 0.1
    assert colour_drift(red, image).da > 2
    assert colour_drift(blue, image).db < -2


def test_highlights_are_measured_separately():
    image = torch.full((3, 100, 100), 0.4)
    image[:, :2] = 0.8  # 2 % of the pixels
    after = image.clone()
    after[:, :2] = 1.0
    found = colour_drift(after, image)
    assert found.p99_l == pytest.approx(float(lab(after)[0, 0, 0] - lab(image)[0, 0, 0]), abs=1e-4)
    assert found.dl == pytest.approx(0.02 * found.p99_l, abs=1e-3)


@pytest.mark.parametrize("frequency, sigma", [(0.125, 0.5), (0.25, 0.5), (0.25, 1.0)])
def test_sharpness_of_a_blurred_wave(frequency, sigma):
    """A blur leaves exp(-2 (pi sigma f)^2) of a wave, so the log2 of its energy falls by 4 (pi sigma f)^2 / ln 2."""
    wave = torch.sin(2 * math.pi * frequency * torch.arange(128.0) + 0.4).expand(3, 96, 128)
    left = math.exp(-2 * (math.pi * sigma * frequency) ** 2)
    found = sharpness(0.5 + 0.3 * left * wave, 0.5 + 0.3 * wave)
    assert found == pytest.approx(-4 * (math.pi * sigma * frequency) ** 2 / math.log(2), abs=0.01)
    assert sharpness(0.5 + 0.3 * wave, 0.5 + 0.3 * left * wave) == pytest.approx(-found, abs=1e-6)


# --- Masks


@pytest.mark.slow
def test_mask_of_ones_equals_no_mask():
    image = IMAGES["waves"]()
    after = (moved(image, 0.3, 0.1) + 0.02 * noise(image)).clamp(0, 1)
    plain, masked = drift(after, image), drift(after, image, torch.ones(image.shape[1:]))
    assert asdict(masked) == pytest.approx(asdict(plain), abs=1e-4)


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(
    top=st.integers(0, 70), left=st.integers(0, 100), height=st.integers(1, 60), width=st.integers(1, 80),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_masked_out_pixels_have_no_influence(top, left, height, width, seed):
    image = waves(96, 128)
    after = (waves(96, 128, dx=0.3) * 0.95 + 0.01 * noise(image)).clamp(0, 1)
    mask = torch.ones(96, 128)
    mask[top : top + height, left : left + width] = 0
    repainted = torch.where(mask > 0, after, noise(image, seed).clamp(0, 1))
    assert asdict(drift(repainted, image, mask)) == pytest.approx(asdict(drift(after, image, mask)), abs=1e-4)


@pytest.mark.parametrize("kept", [1, 4])
def test_mask_that_keeps_only_the_border(kept):
    image = IMAGES["studio"]()
    mask = torch.zeros(image.shape[1:])
    mask[:, :kept] = 1
    after = (0.7 * image).clone()
    found = drift(after, image, mask)
    assert found.confidence == 0 and (found.dx, found.dy, found.scale) == (0, 0, 0)
    assert found.l1 == pytest.approx(float((0.3 * image[:, :, :kept]).mean()), abs=1e-6)
    assert 0 < found.ssim_loss < 1


# --- More damage, more drift

DAMAGE = {
    "noise": (lambda image, x: image + 0.1 * x * noise(image), ("l1", "rmse", "ssim_loss", "sharpness", "delta_e")),
    "blur": (lambda image, x: blurred(image, 0.4 + 2 * x), ("l1", "rmse", "ssim_loss", "-sharpness")),
    "gamma": (lambda image, x: image.clamp(1e-6, 1) ** (1 + 0.5 * x), ("l1", "rmse", "-dl", "delta_e", "-p99_l")),
    "tint": (lambda image, x: image + torch.tensor([0.1, 0.0, -0.1])[:, None, None] * x, ("da", "db", "delta_e")),
    "shift": (lambda image, x: moved(image, 3 * x, -2 * x), ("l1", "rmse", "ssim_loss", "dx", "-dy")),
}  # fmt: skip
strength = st.floats(0.05, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
@settings(deadline=None, max_examples=8)
@given(one=strength, two=strength)
def test_drift_grows_with_the_damage(kind, one, two):
    less, more = sorted((one, two))
    if more - less < 0.05:
        more = less + 0.05
    image = 0.2 + 0.6 * waves(64, 96)  # nothing is clipped
    damage, metrics = DAMAGE[kind]
    weak, strong = (drift(damage(image, x), image) for x in (less, more))
    for metric in metrics:
        sign = -1 if metric.startswith("-") else 1
        assert 0 < sign * getattr(weak, metric.lstrip("-")) < sign * getattr(strong, metric.lstrip("-")), metric


@pytest.mark.slow
def test_scale_grows_with_the_damage():
    found = [alignment(waves(128, 128, scale=s), waves(128, 128)).scale for s in (-0.05, -0.01, 0.0, 0.003, 0.02, 0.2)]
    assert found == sorted(found)
    assert found[2] == 0


# --- Bad input


def test_errors_name_a_remedy():
    image = studio(32, 48)
    nan = image.clone()
    nan[0, 3, 3] = float("nan")
    ones = torch.ones(32, 48)
    for message, wrong in {
        "48x32 but the reference 32x32": (image, image[:, :, :32]),
        "8x32 pixels[.] Drift needs at least 16": (image[:, :, :8], image[:, :, :8]),
        "image holds NaN": (nan, image),
        "reference holds NaN": (image, nan),
        "no pixel to measure": (image, image, 0 * ones),
        "Use one of its size": (image, image, ones[:, :32]),
    }.items():
        with pytest.raises(AnchorEditError, match=message):
            drift(*wrong)
