"""The drift of a session by turn: known damage, masks, sizes; and its plot."""

import csv
import io
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from anchoredit_model.drift.curve import TurnDrift, drift_curve, likeness, relative_sharpness, table
from anchoredit_model.drift.plot import FIRST, HEIGHT, SECOND, WIDTH, drift_plot, nice_step
from anchoredit_model.drift.registration import Alignment
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.filmstrip import BACKGROUND
from anchoredit_model.geometry import fit
from anchoredit_model.memory.anchor_memory import AnchorMemory, Turn
from studio.sessions import render, sample_scenes


def scene(height=128, width=128, seed=0):
    return render(sample_scenes(1, torch.Generator().manual_seed(seed)), height, width)[0]


def blurred(image, sigma):
    taps = torch.exp(-0.5 * (torch.arange(-12.0, 13.0) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    image = F.conv2d(F.pad(image[None], (12, 12, 0, 0), mode="reflect"), taps, groups=3)
    return F.conv2d(F.pad(image, (0, 0, 12, 12), mode="reflect"), taps.mT, groups=3)[0]


def session(image, turns, area=128):
    """A memory whose turns are (instruction, mask or None); its latents are never looked at."""
    geometry = fit(*image.shape[1:], area, 16)
    text = torch.zeros(1, 8)
    memory = AnchorMemory.start(torch.zeros(16, 2, 2), text, image, geometry)
    for instruction, mask in turns:
        memory = memory.commit(Turn(torch.zeros(16, 2, 2), instruction, text, mask=mask))
    return memory


def measured(images, masks=None, subject=None, area=128):
    masks = masks or [None] * (len(images) - 1)
    memory = session(images[0], [(f"edit {n}", mask) for n, mask in enumerate(masks, 1)], area)
    return list(drift_curve(memory, lambda turn, before: images[turn], subject))


def test_copies_of_the_anchor_do_not_drift():
    for turn in measured([scene()] * 3):
        assert turn.likeness == pytest.approx(1, abs=1e-6) and turn.measured == 1
        assert (turn.colour, turn.cast, turn.right, turn.down, turn.scale, turn.sharpness) == (0,) * 6


@pytest.mark.slow
def test_each_damage_shows_in_its_own_metric():
    source = scene(seed=3)
    yellowed = (source * torch.tensor([1.0, 0.97, 0.85])[:, None, None]).clamp(0, 1)
    shifted = source.roll((2, 3), dims=(1, 2))
    _, blur, yellow, shift = measured([source, blurred(source, 1.5), yellowed, shifted])
    assert blur.sharpness < -1 and abs(yellow.sharpness) < 0.1 and abs(shift.sharpness) < 0.5
    assert yellow.cast > 2 > max(blur.cast, shift.cast) and yellow.colour >= yellow.cast
    assert (shift.right, shift.down) == pytest.approx((3, 2), abs=0.2)
    assert max(abs(value) for turn in (blur, yellow) for value in (turn.right, turn.down)) < 0.2
    assert yellow.likeness > 0.99 and shift.likeness > 0.9


@pytest.mark.slow
def test_likeness_falls_with_damage_and_ignores_brightness():
    source, other = scene(seed=5), scene(seed=6)
    assert likeness(0.5 * source + 0.2, source) == pytest.approx(1, abs=1e-4)
    values = [likeness(blurred(source, sigma), source) for sigma in (0.5, 1, 2, 4)] + [likeness(other, source)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.6
    grey = torch.full_like(source, 0.5)
    assert likeness(grey, grey) == pytest.approx(1, abs=1e-4) and likeness(grey, source) < 0.9


def test_likeness_compensates_a_known_shift():
    source = blurred(scene(160, 200, seed=7), 1.0)
    image = source.roll((4, -6), dims=(1, 2))
    unaligned, aligned = likeness(image, source), likeness(image, source, Alignment(-6.0, 4.0, 0.0, 1.0))
    assert aligned > 0.995 > unaligned + 0.05


def test_sharpness_separates_blur_from_darkness():
    source = scene(256, 256, seed=8)
    values = [relative_sharpness(blurred(source, sigma), source) for sigma in (0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[1] < -0.5
    assert relative_sharpness(0.4 * source, source) == pytest.approx(0, abs=0.05)


def test_only_pixels_outside_all_masks_are_measured():
    source = scene(seed=9)
    masks = torch.zeros(2, 1, 128, 128)
    masks[0, :, :40], masks[1, :, :, 100:] = 1, 1
    first, second = source.clone(), source.clone()
    first[:, :40] = 0.1
    second[:, :40], second[:, :, 100:] = 0.9, 0.2
    _, one, two = measured([source, first, second], list(masks))
    for turn in (one, two):
        assert (turn.colour, turn.cast, turn.right, turn.down, turn.sharpness) == (0,) * 5
        assert turn.likeness == pytest.approx(1, abs=1e-6)
    assert one.measured == pytest.approx(88 / 128) and two.measured == pytest.approx(88 * 100 / 128**2)
    everything = torch.ones(1, 128, 128)
    gone = measured([source, first], [everything])[1]
    assert gone == TurnDrift(1, instruction="edit 1")


def test_subject_mask_limits_the_measurement():
    source = scene(seed=10)
    damaged = source.clone()
    damaged[:, :, :64] = 0
    subject = torch.zeros(128, 128)
    subject[:, 64:] = 1
    assert measured([source, damaged], subject=subject)[1].colour == 0
    assert measured([source, damaged], subject=1 - subject)[1].colour > 10


@pytest.mark.parametrize("masked", [False, True])
def test_resizing_to_the_work_size_is_not_drift(masked):
    """A turn's image has been at the work size; a masked one has the source's own pixels outside."""
    source = scene(300, 200, seed=11)
    geometry = fit(300, 200, 128, 16)
    redrawn = geometry.from_work(geometry.to_work(source[None]))[0]
    mask = torch.zeros(1, 300, 200)
    mask[:, :150] = 1
    image = torch.where(mask > 0, redrawn, source) if masked else redrawn
    _, turn = measured([source, image], [mask if masked else None])
    assert turn.sharpness == pytest.approx(0, abs=1e-3) and turn.colour < 0.01
    assert turn.likeness == pytest.approx(1, abs=1e-4)


def test_shifts_are_in_pixels_of_the_source():
    source = scene(384, 384, seed=12)
    _, turn = measured([source, source.roll(6, dims=2)])
    assert (turn.right, turn.down) == pytest.approx((6, 0), abs=0.5)


def test_table_is_valid_csv():
    curve = [TurnDrift(0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0), TurnDrift(1, instruction='say "hi", twice')]
    rows = list(csv.DictReader(io.StringIO(table(curve))))
    assert rows[0]["likeness"] == "1.0000" and rows[1]["likeness"] == ""
    assert rows[1]["instruction"] == 'say "hi", twice'


def test_mask_errors_name_a_remedy():
    source = scene()
    with pytest.raises(
        AnchorEditError, match="must be 128x128 as the image, got 32x64[.] Draw the mask at the image's size"
    ):
        measured([source, source], subject=torch.ones(64, 32))
    with pytest.raises(AnchorEditError, match="Paint white what should be measured"):
        measured([source, source], subject=torch.zeros(128, 128))
    with pytest.raises(AnchorEditError, match="must be edited at 16x16 pixels or more, got 128x8"):
        measured([torch.rand(3, 8, 128)] * 2, area=64)


def colours_in(image):
    return {color for _, color in image.getcolors(image.width * image.height)}


@pytest.mark.parametrize("turns", [1, 2, 60])
def test_the_plot(turns):
    curve = [TurnDrift(n, 1 - n / 100, n, n / 2, n / 10, -n / 10, 0.0, -n / 20, 1.0) for n in range(turns)]
    image = drift_plot(curve)
    assert image.size == (WIDTH, HEIGHT)
    assert {BACKGROUND, FIRST, SECOND} <= colours_in(image)
    assert image.tobytes() == drift_plot(curve).tobytes()


def test_unknown_values_leave_gaps_in_the_plot():
    known = TurnDrift(0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    unknown = [TurnDrift(n) for n in range(4)]
    assert not {FIRST, SECOND} & colours_in(drift_plot(unknown).crop((0, 90, 420, HEIGHT // 2)))
    gap = [replace(known, turn=0), unknown[1], replace(known, turn=2)]
    whole = [replace(known, turn=n) for n in range(3)]
    counts = [sum(c for c, color in drift_plot(curve).getcolors(10**6) if color == FIRST) for curve in (gap, whole)]
    assert counts[0] < counts[1]


@pytest.mark.parametrize("span, most, step", [(1, 4, 0.5), (10, 4, 5), (0.4, 4, 0.1), (80, 4, 20), (12, 8, 2)])
def test_steps_of_an_axis(span, most, step):
    assert nice_step(span, most) == pytest.approx(step)
