"""The drift curve of a session as an image: likeness, colour, shift and sharpness by turn, one plot each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..filmstrip import BACKGROUND, FRAME, LABEL, TEXT, default_font
from .curve import TurnDrift

WIDTH, HEIGHT, COLUMNS = 1000, 800, 2
SUPERSAMPLING = 2  # factor of the size it is drawn at, because Pillow's lines are not antialiased
GRID = (58, 58, 58)
# of Okabe and Ito's palette, which the colour-blind can tell apart: https://jfly.uni-koeln.de/color/
FIRST, SECOND = (86, 180, 233), (230, 159, 0)
_LEFT, _RIGHT, _TOP, _BELOW = 78, 74, 82, 44  # of a panel, around its axes
_TITLE, _SMALL, _TICK = 25, 18, 18  # font sizes
_LINE, _DOT = 3.5, 5.5
_MAX_DOTS = 26  # turns; more dots would hide the line
_TICKS_X, _TICKS_Y = 8, 4


@dataclass(frozen=True)
class Panel:
    """Define one plot: `series` are names and the fields of `TurnDrift` that they show.

    The axis shows at least `lowest` to `highest`, so that noise does not look like drift.
    """

    title: str
    meaning: str
    series: tuple[tuple[str, str], ...]
    lowest: float
    highest: float
    digits: int


PANELS = (
    Panel("Likeness", "SSIM once aligned and equally lit; 1 is the anchor", (("", "likeness"),), 0.6, 1.0, 2),
    Panel("Colour", "CIE76; 2 can just be seen", (("each pixel", "colour"), ("on average", "cast")), 0.0, 10.0, 1),
    Panel("Shift", "in pixels of the source", (("right", "right"), ("down", "down")), -1.0, 1.0, 1),
    Panel("Sharpness", "log2 of fine detail; below 0 is blurrier", (("", "sharpness"),), -1.0, 1.0, 1),
)


def drift_plot(curve: list[TurnDrift]) -> Image.Image:
    """Draw the curve of a session, 1000 x 800 pixels; what could not be measured is a gap in the line."""
    image = Image.new("RGB", (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING), BACKGROUND)
    draw = ImageDraw.Draw(image)
    rows = math.ceil(len(PANELS) / COLUMNS)
    width, height = WIDTH / COLUMNS, HEIGHT / rows
    for number, panel in enumerate(PANELS):
        row, column = divmod(number, COLUMNS)
        box = (
            column * width + _LEFT,
            row * height + _TOP,
            (column + 1) * width - _RIGHT,
            (row + 1) * height - _BELOW,
        )
        _Axes(draw, panel, curve, box).draw()
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def nice_step(span: float, most: int) -> float:
    """Return the smallest of ... 0.5, 1, 2, 5, 10, 20 ... that divides `span` into at most `most` steps."""
    least = span / most
    power = 10 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


class _Axes:
    """Draw one panel within the box (left, top, right, bottom), in pixels of the final image."""

    def __init__(self, draw: ImageDraw.ImageDraw, panel: Panel, curve: list[TurnDrift], box: tuple):
        self.pen, self.panel, self.box = draw, panel, box
        self.turns = [turn.turn for turn in curve]
        self.series = [
            (name, color, [getattr(turn, field) for turn in curve])
            for (name, field), color in zip(panel.series, (FIRST, SECOND))
        ]
        known = [value for _, _, values in self.series for value in values if value is not None]
        low, high = min([panel.lowest, *known]), max([panel.highest, *known])
        self.step = nice_step(high - low, _TICKS_Y)
        self.low = math.floor(low / self.step + 1e-6) * self.step
        self.high = math.ceil(high / self.step - 1e-6) * self.step

    def draw(self) -> None:
        left, top, right, bottom = self.box
        self._text(left, top - 46, self.panel.title, _TITLE, TEXT, "ls")
        self._text(left, top - 20, self.panel.meaning, _SMALL, LABEL, "ls")
        self._legend(right, top - 46)
        for count in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + count * self.step
            y = self._y(value)
            self._line([(left, y), (right, y)], LABEL if abs(value) < self.step / 2 and self.low < 0 else GRID, 1)
            self._text(left - 12, y, _number(value, self.step), _TICK, LABEL, "rm")
        every = max(1, round(nice_step(max(self.turns[-1], 1), _TICKS_X)))
        for turn in self.turns[::every]:
            self._line([(self._x(turn), bottom), (self._x(turn), bottom + 6)], FRAME, 1)
            self._text(self._x(turn), bottom + 10, str(turn), _TICK, LABEL, "ma")
        self._text(right + 22, bottom + 10, "turn", _TICK, LABEL, "la")
        for _, color, values in self.series:
            self._curve(color, values)
        self._last_values()

    def _curve(self, color: tuple, values: list[float | None]) -> None:
        run: list[tuple[float, float]] = []
        for turn, value in zip([*self.turns, 0], [*values, None]):
            if value is not None:
                run.append((self._x(turn), self._y(value)))
                continue
            self._line(run, color, _LINE)
            if len(self.turns) <= _MAX_DOTS or len(run) == 1:
                for x, y in run:
                    circle = [SUPERSAMPLING * edge for edge in (x - _DOT, y - _DOT, x + _DOT, y + _DOT)]
                    self.pen.ellipse(circle, fill=color, outline=BACKGROUND, width=SUPERSAMPLING)
            run = []

    def _last_values(self) -> None:
        """Write the newest turn's values at the end of their lines, moved apart where they would overlap."""
        last = [(self._y(values[-1]), values[-1], color) for _, color, values in self.series if values[-1] is not None]
        last.sort(key=lambda entry: entry[0])
        if len(last) == 2 and last[1][0] - last[0][0] < _SMALL + 2:
            apart = (_SMALL + 2) / 2
            middle = min((last[0][0] + last[1][0]) / 2, self.box[3] - apart)
            last = [(middle - apart, *last[0][1:]), (middle + apart, *last[1][1:])]
        for y, value, color in last:
            shown = f"{value:.{self.panel.digits}f}"
            self._text(self.box[2] + 12, y, "0" if float(shown) == 0 else shown, _SMALL + 1, color, "lm")

    def _legend(self, right: float, y: float) -> None:
        x = right
        for name, color, _ in reversed([entry for entry in self.series if entry[0]]):
            self._text(x, y, name, _SMALL, color, "rs")
            x -= default_font(_SMALL).getlength(name) + 18

    def _x(self, turn: int) -> float:
        left, _, right, _ = self.box
        return left + (right - left) * turn / max(self.turns[-1], 1)

    def _y(self, value: float) -> float:
        _, top, _, bottom = self.box
        return bottom - (bottom - top) * (value - self.low) / (self.high - self.low)

    def _line(self, points: list[tuple[float, float]], color: tuple, width: float) -> None:
        if len(points) > 1:
            scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
            self.pen.line(scaled, fill=color, width=round(width * SUPERSAMPLING), joint="curve")

    def _text(self, x: float, y: float, words: str, size: int, color: tuple, anchor: str) -> None:
        font = default_font(size * SUPERSAMPLING)
        self.pen.text((x * SUPERSAMPLING, y * SUPERSAMPLING), words, font=font, fill=color, anchor=anchor)


def _number(value: float, step: float) -> str:
    """Format a tick's label with as many digits as the step needs."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    shown = f"{value:.{digits}f}"
    return shown.removeprefix("-") if float(shown) == 0 else shown
