"""Registration takes the same decisions however its input is rounded: matched or not, shift and scale.

Float32 sums depend on the number of threads, the processor and the memory layout. Where two answers fit equally well
(stripes, periods, flat regions) such a rounding must not choose between them, so every case is measured again in
float64, with other threads, and after relative noise of 1e-7, about one unit in the last place of float32.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from anchoredit_model.drift.metrics import grey
from anchoredit_model.drift.registration import Alignment, align
from studio.render import render
from studio.scene import sample_scenes

SHIFT, SCALE, CONFIDENCE = 0.02, 3e-4, 0.01  # pixels, factor, correlation: the accuracy that `align` states
SIZE = 48  # small enough for many cases; torch needs larger images to use its threads


def in_float64(image, reference, mask):
    """The same computation with every tensor in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            return align(image, reference, mask)
        finally:
            torch.set_default_dtype(torch.float32)


def with_threads(count, image, reference, mask):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return align(image, reference, mask)
    finally:
        torch.set_num_threads(before)


def assert_robust(image, reference, mask=None, threads=1):
    """Measure brightness [H, W], given in float64, in every way; return the alignment in float64."""
    exact = in_float64(image, reference, mask)
    rounded = image.float(), reference.float()
    noise = torch.randn(2, *image.shape, generator=torch.Generator().manual_seed(0))
    found = {
        "float32": with_threads(1, *rounded, mask),
        "noise": with_threads(1, *(plane * (1 + 1e-7 * each) for plane, each in zip(rounded, noise)), mask),
    }
    if threads > 1:
        found["threads"] = with_threads(threads, *rounded, mask)
    for name, other in found.items():
        assert same(other, exact), (name, other, exact)
    return exact


def same(one: Alignment, other: Alignment) -> bool:
    return (
        one.known == other.known
        and math.hypot(one.dx - other.dx, one.dy - other.dy) < SHIFT
        and abs(one.scale - other.scale) < SCALE
        and abs(one.confidence - other.confidence) < CONFIDENCE
    )


def across(angle, dx=0.0, dy=0.0, size=SIZE):
    """Coordinates [H, W] across and along stripes of an angle, in an image whose content moved by (dx, dy)."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = (axis - dy)[:, None], (axis - dx)[None]
    return x * math.sin(angle) + y * math.cos(angle), x * math.cos(angle) - y * math.sin(angle)


def bytes_of(plane):
    return (plane * 255).round() / 255


def wave(coordinate, period):
    return torch.sin(2 * math.pi / period * coordinate)


STRUCTURES = {  # -1..1, of coordinates across and along, and a length in pixels
    "stripes": lambda u, v, length: wave(u, length),
    "bars": lambda u, v, length: torch.tanh(4 * wave(u, length)),
    "crossed stripes": lambda u, v, length: (wave(u, length) + wave(v, length)) / 2,
    "nearly stripes": lambda u, v, length: (wave(u, length) + 0.03 * wave(v, length)) / 1.03,
    "edge": lambda u, v, length: torch.tanh(u / length),
    "rings": lambda u, v, length: wave((u * u + v * v + 1).sqrt(), length),
    "ramp": lambda u, v, length: u / SIZE,
}
angles = st.sampled_from([0.0, math.pi / 4, math.pi / 2]) | st.floats(0, math.pi)
lengths = st.sampled_from([6.0, 8.0, 16.0]) | st.floats(5, 20)
shifts = st.floats(-2, 2) | st.sampled_from([0.0, 0.5, 4.0, 8.0])  # the latter are half periods


# without shrinking, which would take minutes: a failure names its case as it is
@settings(deadline=None, max_examples=14, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    structure=st.sampled_from(sorted(STRUCTURES)), angle=angles, length=lengths, dx=shifts, dy=shifts,
    contrast=st.sampled_from([0.3, 0.02, 0.002]), in_bytes=st.booleans(), masked=st.booleans(),
)  # fmt: skip
def test_rounding_does_not_change_the_alignment(structure, angle, length, dx, dy, contrast, in_bytes, masked):
    planes = [0.5 + contrast * STRUCTURES[structure](*across(angle, *by), length) for by in ((dx, dy), (0.0, 0.0))]
    if in_bytes:
        planes = [(plane * 255).round() / 255 for plane in planes]
    mask = torch.ones(SIZE, SIZE, dtype=torch.bool)
    mask[8:20, 10:30] = False
    assert_robust(*planes, mask if masked else None)


@pytest.mark.parametrize("tilt", [0.6, *(pytest.param(tilt, marks=pytest.mark.slow) for tilt in (0.0, 1.2, 2.5))])
def test_rounding_does_not_choose_a_shift_along_stripes(tilt):
    """Only the shift across them can be seen."""
    moved, still = (0.5 + 0.3 * torch.sin(0.4 * (across(tilt, size=128)[0] - by)) for by in (0.3, 0.0))
    found = assert_robust(moved, still, threads=2)
    assert (found.dx, found.dy) == pytest.approx((0.3 * math.sin(tilt), 0.3 * math.cos(tilt)), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("shift, other", [((0, 0), 0), ((2, 5), 0), ((0, 0), 1)], ids=["same", "moved", "unrelated"])
def test_rounding_does_not_change_the_alignment_of_scenes(shift, other):
    scenes = render(sample_scenes(2, torch.Generator().manual_seed(4)), 64, 96)
    image, reference = grey(scenes[other]).double().roll(shift, dims=(0, 1)), grey(scenes[0]).double()
    found = assert_robust(image, reference, threads=2)
    assert found.known or other
    assert other or (found.dx, found.dy) == pytest.approx(shift[::-1], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crossed stripes", "rings"])
def test_both_levels_of_a_large_image_are_robust(name):
    """Longer than 256 pixels: found on a smaller copy, refined on the whole."""
    planes = [0.5 + 0.3 * STRUCTURES[name](*across(0.3, *by, size=300), 30.0) for by in ((1.3, -0.7), (0.0, 0.0))]
    found = assert_robust(*planes, threads=2)
    assert (found.dx, found.dy) == pytest.approx((1.3, -0.7), abs=0.05)
