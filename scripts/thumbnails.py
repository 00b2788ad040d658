"""The images that the template browser shows beside the workflows, from what these have made: 512 x 512, JPEG."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

SIDE, FINE, QUALITY = 512, 2, 80  # drawn FINE times larger, then reduced
BACKGROUND, LINE, TEXT = (30, 32, 36), (120, 124, 132), (230, 232, 236)
MODEL, CLIP, VAE, MEMORY = (179, 157, 219), (255, 213, 0), (255, 110, 110), (119, 255, 119)  # the sockets' colours


class Card:
    """A dark square that is drawn on in its own pixels."""

    def __init__(self):
        self.image = Image.new("RGB", (SIDE * FINE, SIDE * FINE), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)

    def paste(self, image: Image.Image, left: float, top: float, side: float) -> None:
        size = round(side * FINE)
        mask = Image.new("L", (size, size))
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, size - 1, size - 1), radius=8 * FINE, fill=255)
        resized = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        self.image.paste(resized, (round(left * FINE), round(top * FINE)), mask)

    def arrow(self, *points: tuple[float, float]) -> None:
        scaled = [(x * FINE, y * FINE) for x, y in points]
        self.draw.line(scaled, fill=LINE, width=4 * FINE, joint="curve")
        (x, y), head = scaled[-1], 9 * FINE
        self.draw.polygon([(x + head, y), (x - head / 2, y - head), (x - head / 2, y + head)], fill=LINE)

    def text(self, words: str, x: float, y: float, size: int = 22, anchor: str = "mm") -> None:
        font = ImageFont.load_default(size * FINE)
        self.draw.text((x * FINE, y * FINE), words, font=font, fill=TEXT, anchor=anchor)

    def frame(self, left: float, top: float, right: float, bottom: float) -> None:
        box = [value * FINE for value in (left, top, right, bottom)]
        self.draw.rounded_rectangle(box, radius=4 * FINE, outline=MEMORY, width=3 * FINE)

    def plug(self, words: str, color: tuple, left: float, top: float, width: float) -> None:
        """Return a box with words and a socket of a colour."""
        box = [value * FINE for value in (left, top, left + width, top + 48)]
        self.draw.rounded_rectangle(box, radius=10 * FINE, fill=(52, 55, 61))
        dot = [value * FINE for value in (left + 16, top + 17, left + 30, top + 31)]
        self.draw.ellipse(dot, fill=color)
        self.text(words, left + 46, top + 24, anchor="lm")

    def save(self, path: Path) -> None:
        self.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(path, quality=QUALITY, optimize=True)


def first_edit(card: Card, strip: list[Image.Image]) -> None:
    source, first, second = strip
    card.paste(source, 30, 96, 146)
    card.paste(first, 30, 258, 146)
    card.paste(second, 192, 96, 308 - 18)
    card.text("blue background", 103, 428)
    card.text("write OK on the sign", 337, 428)


def ten_turns(card: Card, strip: list[Image.Image]) -> None:
    for number, image in enumerate(strip):
        row, column = divmod(number + (number > 0), 4)  # the second place is the arrow's
        card.paste(image, 24 + 118 * column, 88 + 118 * row, 110)
    card.arrow((160, 143), (228, 143))


def branches(card: Card, one: list[Image.Image], other: list[Image.Image]) -> None:
    card.paste(one[2], 28, 194, 150)
    for image, top in ((one[3], 76), (other[3], 284)):
        card.paste(image, 288, top, 190)
        card.arrow((190, 269), (232, 269), (232, top + 95), (268, top + 95))


def masked_edit(card: Card, strip: list[Image.Image]) -> None:
    source, first, second = strip
    card.paste(source, 28, 181, 150)
    card.arrow((190, 256), (264, 256))
    for image, top in ((first, 76), (second, 272)):
        card.paste(image, 296, top, 180)
        left, upper, right, lower = (
            180 * edge / source.width for edge in ImageChops.difference(source, image).getbbox()
        )
        card.frame(296 + left, top + upper, 296 + right, top + lower)


def variants(card: Card, candidates: list[Image.Image], strip: list[Image.Image]) -> None:
    card.paste(strip[0], 28, 191, 130)
    card.arrow((168, 256), (206, 256))
    for number, image in enumerate(candidates):
        row, column = divmod(number, 2)
        left, top = 234 + 130 * column, 131 + 130 * row
        card.paste(image, left, top, 120)
        if image.tobytes() == strip[1].tobytes():
            card.frame(left - 3, top - 3, left + 123, top + 123)


def native_sampler(card: Card, strip: list[Image.Image]) -> None:
    source, edited = strip
    card.paste(source, 36, 82, 180)
    card.arrow((232, 172), (272, 172))
    card.paste(edited, 296, 82, 180)
    for number, (words, color) in enumerate(
        (("Apply Memory", MODEL), ("SamplerCustomAdvanced", (255, 156, 249)), ("Commit Turn", MEMORY))
    ):
        card.plug(words, color, 36, 292 + 60 * number, 440)


def save_and_go_on(card: Card, strip: list[Image.Image]) -> None:
    for number, image in enumerate(strip):
        card.paste(image, 36 + 150 * number, 120, 140)
    card.plug("Save Session", MEMORY, 36, 302, 196)
    card.arrow((238, 326), (256, 326))
    card.plug("Load Session", MEMORY, 276, 302, 200)
    card.text("another day", 376, 378)


def wan_setup(card: Card) -> None:
    card.text("Wan 2.1", SIDE / 2, 150, 72)
    card.text("needs three files", SIDE / 2, 218, 24)
    for number, (words, color) in enumerate(
        (("diffusion_models: trained to edit", MODEL), ("text_encoders: umT5", CLIP), ("vae: Wan 2.1", VAE))
    ):
        card.plug(words, color, 50, 274 + 60 * number, 412)


def on_a_card(gigabytes: int, model: str, memory: str, card: Card) -> None:
    """Return a set-up for a card of so many GB: which model, and where its keys and values are."""
    card.text("Wan 2.1", SIDE / 2, 130, 60)
    card.text(f"on {gigabytes} GB", SIDE / 2, 208, 60)
    card.plug(model, MODEL, 50, 304, 412)
    card.plug(memory, MEMORY, 50, 364, 412)


CARDS = {
    "First edit": first_edit,
    "Ten turns": ten_turns,
    "Branches": branches,
    "Masked edit": masked_edit,
    "Variants": variants,
    "Native sampler": native_sampler,
    "Save and go on": save_and_go_on,
    "Wan 2.1 set-up": wan_setup,
    "Wan 2.1 on 12 GB": partial(on_a_card, 12, "1.3B", "memory: 3.8 GB on the card"),
    "Wan 2.1 on 16 GB": partial(on_a_card, 16, "14B in fp8", "memory: 8.4 GB of RAM, 8 bits"),
    "Wan 2.1 on 24 GB": partial(on_a_card, 24, "14B in fp8", "memory: 6.7 GB on the card, 8 bits"),
}


def thumbnail(name: str, strips: list[list[Image.Image]], path: Path) -> None:
    """Draws the image of workflow `name`; `strips` are the images of its filmstrips and variants."""
    card = Card()
    CARDS[name](card, *strips)
    card.save(path)
