"""The contact sheet takes any sizes, captions and scripts, and wraps into even rows."""

import pytest
import torch

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.filmstrip import CAPTION_LINES, _wrap, caption_font, contact_sheet, filmstrip, thumbnail

LONG = "put a small red boat with a white sail on the lake, left of the island, and its reflection in the water"

CHINESE = "\u628a\u5929\u7a7a\u53d8\u6210\u6e29\u6696\u7684\u6a59\u8272\u65e5\u843d\u3002"
MANY_SCRIPTS = "\u628a\u5929\u7a7a, \u041f\u0440\u0438\u0432\u0435\u0442 \U0001f642 \u05e9\u05dc\u05d5\u05dd"


def grey(height, width, level=0.9):
    return torch.full((3, height, width), level)


def test_rows_are_evenly_filled():
    one_row = filmstrip([grey(64, 64)] * 6, ["brighter"] * 5, thumb=64)
    two_rows = filmstrip([grey(64, 64)] * 8, ["brighter"] * 7, thumb=64)
    assert one_row.width > two_rows.width  # 6 in one row, 4 + 4 in two
    assert one_row.height < two_rows.height
    single = filmstrip([grey(64, 64)], [], thumb=64)
    assert single.width < two_rows.width < 5 * single.width
    assert filmstrip([grey(64, 64)] * 3, ["a", "b"], thumb=64, columns=1).width == single.width


def test_thumbnails_show_the_images():
    source, edited = grey(8, 8, 0.9), grey(8, 8, 0.5)
    colours = {colour: count for count, colour in filmstrip([source, edited], ["x"], thumb=64).getcolors()}
    for level in (230, 128):
        assert colours[(level,) * 3] >= 64 * 64


@pytest.mark.parametrize("height, width", [(40, 56), (7, 300), (500, 31), (1, 1)])
def test_sheet_of_cached_thumbnails_equals_that_of_the_images(height, width):
    images = list(torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(0)))
    captions = ["brighter", LONG, "x"]
    expected = filmstrip(images, captions, thumb=64)
    assert contact_sheet([thumbnail(image, 64) for image in images], captions, thumb=64) == expected
    labels = ["source", *(f"turn {number}" for number in range(1, len(images)))]
    assert filmstrip(images, captions, thumb=64, labels=labels) == expected
    assert filmstrip(images, captions, thumb=64, labels=["before", *labels[1:]]) != expected


@pytest.mark.parametrize("height, width", [(1, 1), (3, 900), (900, 3), (50, 200), (200, 50)])
def test_any_aspect(height, width):
    sheet = filmstrip([grey(height, width), grey(20, 30)], [MANY_SCRIPTS], thumb=48)
    assert sheet.mode == "RGB" and max(sheet.size) < 400


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        CHINESE * 8,
        "x" * 300,
        LONG.replace(" ", "\n"),
    ],
)
def test_long_captions_end_in_an_ellipsis(text):
    font = caption_font(text, 12)
    lines = _wrap(text, font, 120)
    assert len(lines) == CAPTION_LINES and lines[-1].endswith("…")
    assert all(0 < font.getlength(line) <= 120 for line in lines)
    assert "".join(lines)[:-1].replace(" ", "") in "".join(text.split())


def test_short_captions_are_kept_whole():
    font = caption_font("", 12)
    assert _wrap("remove the boat", font, 400) == ["remove the boat"]
    assert " ".join(_wrap("remove the  boat ", font, 60)) == "remove the boat"
    assert _wrap("", font, 60) == []


def test_inconsistent_arguments_are_refused():
    with pytest.raises(AnchorEditError, match="2 images and 2 captions"):
        filmstrip([grey(4, 4)] * 2, ["a", "b"])
    with pytest.raises(AnchorEditError, match="0 images and 0 captions"):
        filmstrip([], [])
    with pytest.raises(AnchorEditError, match="thumb"):
        filmstrip([grey(4, 4)], [], thumb=3)
