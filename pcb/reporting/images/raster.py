"""An image of the gallery as one picture, for places that do not show SVG.

Code hosts and untrusted notebooks remove inline SVG. The page has the SVG, whose labels can be
searched and read aloud; the notebook has this.
"""

from __future__ import annotations

import base64
import io
import re

from PIL import Image, ImageDraw, ImageFont

from pcb.reporting.images.gallery_view import FONT_SIZE, LABEL_HEIGHT

SCALE = 1.1  # pixels a unit
GAP, HEAD = 10, 18  # units between panels, and above them for their titles
QUALITY = 72
# Outline and label of the three groups, as in pictures.css.
COLOURS = {"r": ("#ff8a3c", "#b34e00"), "c": ("#35d6a5", "#00785a"), "f": ("#5cb8ff", "#0066a0")}


def strip(shot: dict) -> bytes:
    """The three panels of an image side by side, as JPEG.

    Args:
        shot: What `gallery_view.shot` returned.
    """
    panels = shot["panels"]
    width = sum(p["width"] for p in panels) + GAP * (len(panels) - 1)
    height = HEAD + max(p["height"] for p in panels)
    picture = Image.new("RGB", (_pixels(width), _pixels(height)), "white")
    draw = ImageDraw.Draw(picture, "RGBA")
    thumbnail = Image.open(io.BytesIO(base64.b64decode(shot["thumbnail"].partition(",")[2])))
    left = 0.0
    for panel in panels:
        size = (_pixels(panel["width"]), _pixels(panel["height"]))
        picture.paste(thumbnail.resize(size), (_pixels(left), _pixels(HEAD)))
        draw.text((_pixels(left), 2), panel["who"], "#444444", _font(10.5))
        for shown in panel["objects"]:
            _outline(draw, shown, panel["scale"], left)
        for shown in panel["objects"]:
            _label(draw, shown, left)
        left += panel["width"] + GAP
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def _pixels(units: float) -> int:
    return round(units * SCALE)


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


def _outline(draw: ImageDraw.ImageDraw, shown: dict, scale: float, left: float) -> None:
    colour, focus = COLOURS[shown["group"]][0], shown.get("focus")
    for corners in polygons(shown["path"]):
        points = [
            (_pixels(left + x * scale), _pixels(HEAD + y * scale))
            for x, y in [*corners, corners[0]]
        ]
        draw.polygon(points, fill=colour + ("4d" if focus else "29"))
        draw.line(points, fill=colour, width=_pixels(3.2 if focus else 1.6), joint="curve")


def _label(draw: ImageDraw.ImageDraw, shown: dict, left: float) -> None:
    x, y = left + shown["x"], HEAD + shown["y"]
    chip, height = 13, LABEL_HEIGHT

    def box(x0: float, x1: float) -> tuple[int, int, int, int]:
        return _pixels(x0), _pixels(y), _pixels(x1), _pixels(y + height)

    edge = "white" if shown.get("focus") else None
    draw.rounded_rectangle(box(x, x + shown["w"]), _pixels(2.5), "#15181c", edge)
    draw.rounded_rectangle(box(x, x + chip), _pixels(2.5), COLOURS[shown["group"]][1])
    middle = _pixels(y + height / 2)
    font = _font(FONT_SIZE)
    draw.text((_pixels(x + chip / 2), middle), shown["group"], "white", font, anchor="mm")
    draw.text((_pixels(x + chip + 3), middle), shown["text"], "white", font, anchor="lm")


def polygons(path: str) -> list[list[tuple[float, float]]]:
    """The corners of a path that `thumbnails.outline` made: `M400 100v200h-200z`, in pixels."""
    out: list[list[tuple[float, float]]] = []
    for command, numbers in re.findall(r"([Mhv])([-\d. ]+)", path):
        values = list(map(float, numbers.split()))
        if command == "M":
            out.append([(values[0], values[1])])
        else:
            x, y = out[-1][-1]
            out[-1].append((x + values[0], y) if command == "h" else (x, y + values[0]))
    return out
