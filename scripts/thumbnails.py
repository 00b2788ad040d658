"""Draw the thumbnails that the template browser shows beside the workflows, from their results: 512x512, JPEG."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

SIDE, FINE, QUALITY = 512, 2, 80  # drawn FINE times larger, then reduced
BACKGROUND, LINE, TEXT = (30, 32, 36), (120, 124, 132), (230, 232, 236)
MODEL, CLIP, VAE, SESSION = (179, 157, 219), (255, 213, 0), (255, 110, 110), (119, 255, 119)  # the sockets' colours


class Card:
    """Draw on a dark square, in its own pixels."""

    def __init__(self):
        self.image = Image.new("RGB", (SIDE * FINE, SIDE * FINE), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)

    def paste(self, image: Image.Image, left: float, top: float, side: float) -> None:
        """Draw an image as a square with rounded corners."""
        size = round(side * FINE)
        mask = Image.new("L", (size, size))
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, size - 1, size - 1), radius=8 * FINE, fill=255)
        resized = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        self.image.paste(resized, (round(left * FINE), round(top * FINE)), mask)

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw an arrow to the right through points (x, y)."""
        scaled = [(x * FINE, y * FINE) for x, y in points]
        self.draw.line(scaled, fill=LINE, width=4 * FINE, joint="curve")
        (x, y), head = scaled[-1], 9 * FINE
        self.draw.polygon([(x + head, y), (x - head / 2, y - head), (x - head / 2, y + head)], fill=LINE)

    def text(self, words: str, x: float, y: float, size: int = 22, anchor: str = "mm") -> None:
        """Write words; `anchor` is Pillow's."""
        font = ImageFont.load_default(size * FINE)
        self.draw.text((x * FINE, y * FINE), words, font=font, fill=TEXT, anchor=anchor)

    def frame(self, left: float, top: float, right: float, bottom: float) -> None:
        """Draw a bright frame."""
        box = [value * FINE for value in (left, top, right, bottom)]
        self.draw.rounded_rectangle(box, radius=4 * FINE, outline=SESSION, width=3 * FINE)

    def plug(self, words: str, color: tuple, left: float, top: float, width: float) -> None:
        """Draw a box with words and a socket of a colour."""
        box = [value * FINE for value in (left, top, left + width, top + 48)]
        self.draw.rounded_rectangle(box, radius=10 * FINE, fill=(52, 55, 61))
        dot = [value * FINE for value in (left + 16, top + 17, left + 30, top + 31)]
        self.draw.ellipse(dot, fill=color)
        self.text(words, left + 46, top + 24, anchor="lm")

    def save(self, path: Path) -> None:
        """Write the thumbnail."""
        self.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(path, quality=QUALITY, optimize=True)


def first_edit(card: Card, strip: list[Image.Image]) -> None:
    """Draw the source and the first turn small, the second turn large."""
    source, first, second = strip
    card.paste(source, 30, 96, 146)
    card.paste(first, 30, 258, 146)
    card.paste(second, 192, 96, 308 - 18)
    card.text("blue background", 103, 428)
    card.text("write OK on the sign", 337, 428)


def ten_turns(card: Card, strip: list[Image.Image]) -> None:
    """Draw the source and all turns in rows."""
    for number, image in enumerate(strip):
        row, column = divmod(number + (number > 0), 4)  # the second position is the arrow's
        card.paste(image, 24 + 118 * column, 88 + 118 * row, 110)
    card.arrow((160, 143), (228, 143))


def branches(card: Card, one: list[Image.Image], other: list[Image.Image]) -> None:
    """Draw the shared turn and the newest turns of both branches."""
    card.paste(one[2], 28, 194, 150)
    for image, top in ((one[3], 76), (other[3], 284)):
        card.paste(image, 288, top, 190)
        card.arrow((190, 269), (232, 269), (232, top + 95), (268, top + 95))


def masked_edit(card: Card, strip: list[Image.Image]) -> None:
    """Draw both turns with a frame around what has changed."""
    source, first, second = strip
    card.paste(source, 28, 181, 150)
    card.arrow((190, 256), (264, 256))
    for image, top in ((first, 76), (second, 272)):
        card.paste(image, 296, top, 180)
        changed = ImageChops.difference(source, image).getbbox() or (0, 0, *source.size)
        left, upper, right, lower = (180 * edge / source.width for edge in changed)
        card.frame(296 + left, top + upper, 296 + right, top + lower)


def variations(card: Card, candidates: list[Image.Image], strip: list[Image.Image]) -> None:
    """Draw all candidates with a frame around the one that was picked."""
    card.paste(strip[0], 28, 191, 130)
    card.arrow((168, 256), (206, 256))
    for number, image in enumerate(candidates):
        row, column = divmod(number, 2)
        left, top = 234 + 130 * column, 131 + 130 * row
        card.paste(image, left, top, 120)
        if image.tobytes() == strip[1].tobytes():
            card.frame(left - 3, top - 3, left + 123, top + 123)


def native_sampler(card: Card, strip: list[Image.Image]) -> None:
    """Draw before and after, and the three nodes that make a turn."""
    source, edited = strip
    card.paste(source, 36, 82, 180)
    card.arrow((232, 172), (272, 172))
    card.paste(edited, 296, 82, 180)
    for number, (words, color) in enumerate(
        (("Apply Memory", MODEL), ("SamplerCustomAdvanced", (255, 156, 249)), ("Commit Turn", SESSION))
    ):
        card.plug(words, color, 36, 292 + 60 * number, 440)


def save_and_go_on(card: Card, strip: list[Image.Image]) -> None:
    """Draw the turns of both days."""
    for number, image in enumerate(strip):
        card.paste(image, 36 + 150 * number, 120, 140)
    card.plug("Save Session", SESSION, 36, 302, 196)
    card.arrow((238, 326), (256, 326))
    card.plug("Load Session", SESSION, 276, 302, 200)
    card.text("another day", 376, 378)


def wan_setup(card: Card) -> None:
    """Draw the files that are needed."""
    card.text("Wan 2.1", SIDE / 2, 150, 72)
    card.text("needs three files", SIDE / 2, 218, 24)
    for number, (words, color) in enumerate(
        (("diffusion_models: trained to edit", MODEL), ("text_encoders: umT5", CLIP), ("vae: Wan 2.1", VAE))
    ):
        card.plug(words, color, 50, 274 + 60 * number, 412)


def wan_on(gigabytes: int, model: str, kv: str, card: Card) -> None:
    """Draw the set-up for a GPU of so many GB: which model, and where its keys and values are."""
    card.text("Wan 2.1", SIDE / 2, 130, 60)
    card.text(f"on {gigabytes} GB", SIDE / 2, 208, 60)
    card.plug(model, MODEL, 50, 304, 412)
    card.plug(kv, SESSION, 50, 364, 412)


CARDS = {
    "First edit": first_edit,
    "Ten turns": ten_turns,
    "Branches": branches,
    "Masked edit": masked_edit,
    "Variations": variations,
    "Native sampler": native_sampler,
    "Save and go on": save_and_go_on,
    "Wan 2.1 set-up": wan_setup,
    "Wan 2.1 on 12 GB": partial(wan_on, 12, "1.3B", "K/V: 3.8 GB on the GPU"),
    "Wan 2.1 on 16 GB": partial(wan_on, 16, "14B in fp8", "K/V: 8.4 GB of RAM, 8 bits"),
    "Wan 2.1 on 24 GB": partial(wan_on, 24, "14B in fp8", "K/V: 6.7 GB on the GPU, 8 bits"),
}


def thumbnail(name: str, strips: list[list[Image.Image]], path: Path) -> None:
    """Draw the thumbnail of workflow `name`; `strips` are the images of its filmstrips and variations."""
    card = Card()
    CARDS[name](card, *strips)
    card.save(path)
