"""Exact sizes for any input, no shift, no change outside a mask."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.geometry import Geometry, buckets, composite, fit, fit_into

side = st.integers(1, 5000)


@pytest.mark.parametrize("wrong", [(0, 64, 4), (1000, 64, 4), (1024, 0, 4), (1024, 64, 0.5), (1024, 64, float("nan"))])
def test_invalid_bucket_sizes_are_refused(wrong):
    with pytest.raises(AnchorEditError, match="resolution"):
        buckets(*wrong)


@given(side, side)
@settings(deadline=None)
def test_fit_keeps_the_whole_image(height, width):
    g = fit(height, width)
    assert (g.work_height, g.work_width) in buckets(1024, 64, 4)
    assert g.content_height == g.work_height or g.content_width == g.work_width
    assert abs(g.content_top - g.pad_below) <= 1 and abs(g.content_left - g.pad_right) <= 1
    # One scale for both axes, but for the half pixel that rounding costs (a whole one at the least size).
    assert abs(g.content_height * width - g.content_width * height) <= max(height, width)
    assert Geometry.from_json(json.loads(json.dumps(g.to_json()))) == g


@given(side, side)
@settings(deadline=None, max_examples=8)
def test_any_size_is_restored_exactly(height, width):
    g = fit(height, width, resolution=64, step=16)
    image = torch.full((1, 1, 1, 1), 0.25).expand(1, 1, height, width)
    work = g.to_work(image)
    assert work.shape == (1, 1, g.work_height, g.work_width)
    back = g.from_work(work)
    assert back.shape == image.shape
    torch.testing.assert_close(back, image)


@pytest.mark.parametrize("height, width", [(1, 1), (20000, 10), (10, 20000), (1, 5000), (3, 2)])
def test_extreme_sizes(height, width):
    g = fit(height, width, resolution=128, step=16)
    image = torch.rand(1, 3, height, width)
    back = g.from_work(g.to_work(image))
    assert back.shape == image.shape
    assert back.isfinite().all()
    assert f"{width}x{height}" in g.describe()


@pytest.mark.parametrize("height, width", [(832, 1216), (1024, 1024), (2048, 512)])
def test_identity_is_bit_exact(height, width):
    g = fit(height, width)
    image = torch.rand(1, 3, height, width) * 1.2 - 0.1  # out of range on purpose: not even clipped
    assert torch.equal(g.to_work(image), image)
    assert torch.equal(g.from_work(image), image)
    assert g.describe() == f"works at {width}x{height} (the input's own size)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_padding_alone_is_bit_exact(dtype):
    g = fit_into(100, 96, 100, 128)
    image = torch.rand(2, 3, 100, 96).to(dtype)
    work = g.to_work(image)
    assert torch.equal(g.from_work(work), image)
    assert torch.equal(work[..., 0], image[..., 0]) and torch.equal(work[..., -1], image[..., -1])
    assert g.describe() == "works at 128x100 (input 96x100, not scaled, padded 16 px left, 16 px right)"


def blob(height, width, y, x, sigma):
    rows = torch.arange(height, dtype=torch.float64)[:, None] + 0.5
    columns = torch.arange(width, dtype=torch.float64)[None] + 0.5
    return torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2)).float()[None, None]


def centroid(image):
    """Centre of mass (y, x) of [1, 1, H, W], in pixels from the top left corner."""
    weight = image[0, 0].double()
    height, width = weight.shape
    y = (weight.sum(1) * (torch.arange(height) + 0.5)).sum() / weight.sum()
    x = (weight.sum(0) * (torch.arange(width) + 0.5)).sum() / weight.sum()
    return torch.stack([y, x])


@pytest.mark.parametrize(
    "source, work",
    [((300, 450), (256, 384)), ((301, 447), (256, 384)), ((123, 250), (256, 512)), ((500, 333), (256, 176))],
)
def test_resizing_does_not_shift(source, work):
    g = fit_into(*source, *work)
    for fraction_y, fraction_x in ((0.5, 0.5), (0.35, 0.6)):
        y, x = source[0] * fraction_y, source[1] * fraction_x
        image = blob(*source, y, x, min(source) / 14)
        canvas = g.to_work(image)
        # Not only there and back: the canvas, too, shows the blob exactly where the geometry says.
        expected = torch.tensor(
            [
                g.content_top + y * g.content_height / source[0],
                g.content_left + x * g.content_width / source[1],
            ]
        )
        assert (centroid(canvas) - expected).abs().max() < 0.02
        back = g.from_work(canvas)
        assert (centroid(back) - centroid(image)).abs().max() < 0.02
        assert (back - image).abs().max() < 0.01


def test_wrong_size_names_both():
    with pytest.raises(AnchorEditError, match=r"must be 40x20 .*got 30x20"):
        fit(20, 40).to_work(torch.zeros(1, 3, 20, 30))
    with pytest.raises(AnchorEditError, match="0x20"):
        fit(20, 0)


@pytest.mark.parametrize("change", [{"content_top": -1}, {"content_width": 5000}, {"input_height": 1.5}, {"extra": 1}])
def test_from_json_refuses_invalid_values(change):
    with pytest.raises(AnchorEditError, match="geometry"):
        Geometry.from_json(fit(100, 200).to_json() | change)


def scene():
    generator = torch.Generator().manual_seed(0)
    edited = torch.rand(2, 3, 40, 50, generator=generator)
    previous = torch.rand(2, 3, 40, 50, generator=generator)
    mask = torch.zeros(1, 1, 40, 50)
    mask[..., 10:30, 20:] = 1  # touches the image's right border
    return edited, previous, mask


@pytest.mark.parametrize("feather", [0, 1, 4, 200])
def test_composite_is_bit_exact_outside_the_mask(feather):
    edited, previous, mask = scene()
    edited[..., 0, 0] = float("nan")  # outside: must not leak
    result = composite(edited, previous, mask, feather)
    outside = (mask == 0).expand_as(result)
    assert torch.equal(result[outside], previous[outside])
    assert result.isfinite().all()


def test_composite_feathers_inside_only():
    edited, previous, mask = scene()
    assert torch.equal(composite(edited, previous, mask), torch.where(mask > 0, edited, previous))
    weight = composite(torch.ones_like(edited), torch.zeros_like(previous), mask, feather=4)[0, 0]
    torch.testing.assert_close(weight[20, 18:26], torch.tensor([0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1]))
    assert torch.equal(weight[14:26, 24:], torch.ones(12, 26))  # no feather at the image's own border
    torch.testing.assert_close(weight[11, 21], torch.tensor(0.4))
    torch.testing.assert_close(composite(edited, previous, mask / 2), torch.lerp(previous, edited, mask / 2))


@given(
    rows=st.tuples(st.integers(0, 19), st.integers(1, 20)),
    columns=st.tuples(st.integers(0, 23), st.integers(1, 24)),
    hole=st.booleans(),
    feather=st.integers(0, 9),
)
def test_composite_fades_by_the_distance_to_the_nearest_pixel_outside(rows, columns, hole, feather):
    mask = torch.zeros(1, 1, 20, 24)
    mask[..., rows[0] : rows[0] + rows[1], columns[0] : columns[0] + columns[1]] = 0.75
    if hole:
        mask[..., 10, 12] = 0
    weight = composite(torch.ones(1, 1, 20, 24), torch.zeros(1, 1, 20, 24), mask, feather)
    positions = torch.stack(torch.meshgrid(torch.arange(20), torch.arange(24), indexing="ij"), dim=-1).float()
    outside = positions[mask[0, 0] == 0]
    depth = torch.cdist(positions.view(-1, 2), outside).amin(dim=1) if len(outside) else torch.full((480,), 99.0)
    fade = (depth / (feather + 1)).clamp(max=1).view(20, 24)
    torch.testing.assert_close(weight[0, 0], mask[0, 0] * fade)


def test_composite_refuses_other_sizes():
    edited, previous, mask = scene()
    with pytest.raises(AnchorEditError, match="mask"):
        composite(edited, previous, mask[..., 1:])
    with pytest.raises(AnchorEditError, match="feather"):
        composite(edited, previous, mask, -1)
