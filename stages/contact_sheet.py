"""Pictures with captions on one sheet, for places that show a single picture, such as a README."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LINE = 128, 18, 17  # pixels: side of a picture, space between, height of a line of text
LINES, LETTER = 3, 13  # lines of a caption at most, and size of its letters
LONGEST = 14  # letters of a word, so that it surely fits
PAPER, INK = (255, 255, 255), (40, 40, 40)
MARKS = {True: ((24, 113, 69), "right"), False: ((178, 51, 37), "wrong")}


class Pinned(NamedTuple):
    """One picture [H, W, 3] on the sheet."""

    picture: NDArray[np.uint8]
    caption: str
    right: bool | None  # None where nobody judges


def contact_sheet(pinned: Sequence[Pinned], columns: int = 6) -> NDArray[np.uint8]:
    """[H, W, 3]: the pictures in rows, each brought to CELL pixels without smoothing, its verdict and caption below."""
    rows = -(-len(pinned) // columns)
    height = CELL + (LINES + 1) * LINE + GAP
    sheet = Image.new("RGB", (columns * (CELL + GAP) + GAP, rows * height + GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTER)
    for number, one in enumerate(pinned):
        x, y = GAP + number % columns * (CELL + GAP), GAP + number // columns * height
        sheet.paste(Image.fromarray(one.picture).resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
        y += CELL + 4
        if one.right is not None:
            colour, word = MARKS[one.right]
            pen.text((x, y), word, fill=colour, font=font)
            y += LINE
        for line in _wrapped(one.caption, pen, font)[:LINES]:
            pen.text((x, y), line, fill=INK, font=font)
            y += LINE
    return np.asarray(sheet)


def _wrapped(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines no wider than a picture, broken between words; very long words are cut."""
    lines = [""]
    for word in (long[at : at + LONGEST] for long in text.split() for at in range(0, len(long), LONGEST)):
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or pen.textlength(longer, font=font) <= CELL:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
