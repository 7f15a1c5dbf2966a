"""Contact sheet: a page of a data set's scenes with mask outlines, class names and their r/c/f groups, to look at.

contact_sheet("data/v05/train.json", "data/v05/images", "sheet.png")
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError
from pcb.files import atomic
from pcb.synthetic.scenes import random_state

GROUPS = {"r": ("rare", "#c2410c"), "c": ("common", "#1d4ed8"), "f": ("frequent", "#15803d")}
PAPER, INK, FAINT = "#fbfaf7", "#22252a", "#6b7280"
GAP, HEAD = 14, 64


def contact_sheet(
    annotations: str | Path,
    images: str | Path,
    out: str | Path,
    count: int = 20,
    columns: int = 5,
    side: int = 300,
    seed: int = 0,
    at_most: int = 12,
) -> Path:
    """Draw `count` random images that have annotations, each fitted into `side` pixels, to the PNG `out`; return its path.

    Of a crowded image the `at_most` largest objects are drawn. Raises `UserError` where the file is bad or no image is there.
    """
    index = LVISIndex(annotations, images)
    there = [
        image
        for image in index.images
        if index.by_image[image["id"]] and index.image_paths[image["id"]].is_file()
    ]
    if not there:
        raise UserError(
            f"{index.folder}: none of the images of {index.path} is there",
            "mend the image folder, or generate the data",
        )
    order = random_state("sheet", seed).permutation(len(there))[:count]
    chosen = [there[i] for i in sorted(order)]
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    page = Image.new("RGB", (columns * (side + GAP) + GAP, HEAD + rows * (side + GAP)), PAPER)
    header(page, index)
    for place, image in enumerate(chosen):
        objects = sorted(index.by_image[image["id"]], key=lambda a: -a["area"])[:at_most]
        tile = scene(
            Image.open(index.image_paths[image["id"]]).convert("RGB"), objects, index, side
        )
        page.paste(
            tile,
            (
                GAP + place % columns * (side + GAP) + (side - tile.width) // 2,
                HEAD + place // columns * (side + GAP) + (side - tile.height) // 2,
            ),
        )
    with atomic(out) as temporary:
        page.save(temporary, format="PNG")
    return Path(out)


def header(page: Image.Image, index: LVISIndex) -> None:
    """Name of the file, what it holds, and the colours of the three groups."""
    draw = ImageDraw.Draw(page)
    draw.text(
        (GAP, 12),
        f"{index.path.parent.name}/{index.path.name}",
        fill=INK,
        font=ImageFont.load_default(20),
    )
    facts = f"LVIS {index.version} format   {len(index)} images   {index.annotation_count} instances   {len(index.classes)} classes"
    draw.text((GAP, 38), facts, fill=FAINT, font=ImageFont.load_default(13))
    font, groups = ImageFont.load_default(14), index.frequency()
    x = page.width - GAP
    for group in "fcr":
        word, colour = GROUPS[group]
        text = f"{word} ({groups.count(group)})"
        x -= int(draw.textlength(text, font=font))
        draw.text((x, 14), text, fill=INK, font=font)
        draw.rounded_rectangle((x - 20, 17, x - 7, 30), 3, fill=colour)
        x -= 40


def scene(image: Image.Image, objects: list[dict], index: LVISIndex, side: int) -> Image.Image:
    """The image fitted into `side`, with its objects' outlines and names."""
    scale = side / max(image.size)
    size = [max(1, round(scale * s)) for s in image.size]
    tile = image.resize(size, Image.LANCZOS)
    groups = index.frequency()
    draw = ImageDraw.Draw(tile)
    for annotation in objects:
        colour = GROUPS[groups[annotation["category_id"] - 1]][1]
        for polygon in (
            annotation["segmentation"] if isinstance(annotation["segmentation"], list) else ()
        ):
            corners = [
                (scale * x, scale * y) for x, y in zip(polygon[::2], polygon[1::2], strict=True)
            ]
            draw.line([*corners, corners[0]], fill="white", width=4, joint="curve")
            draw.line([*corners, corners[0]], fill=colour, width=2, joint="curve")
    taken: list[tuple[float, float, float, float]] = []
    for annotation in sorted(objects, key=lambda a: a["bbox"][1]):
        label(
            draw,
            annotation,
            index.classes[annotation["category_id"] - 1],
            groups[annotation["category_id"] - 1],
            scale,
            size,
            taken,
        )
    return tile


def label(
    draw: ImageDraw.ImageDraw,
    annotation: dict,
    name: str,
    group: str,
    scale: float,
    size: list[int],
    taken: list,
) -> None:
    """The class name above its object, moved down where another name stands already."""
    font = ImageFont.load_default(12)
    text = f"{name.split('_(')[0].replace('_', ' ')}  {group}"
    width, height = draw.textlength(text, font=font) + 10, 17
    x = min(
        max(0, scale * (annotation["bbox"][0] + annotation["bbox"][2] / 2) - width / 2),
        max(0, size[0] - width - 1),
    )
    y = min(max(0, scale * annotation["bbox"][1] - height / 2), size[1] - height - 1)
    for _ in range(len(taken) + 1):
        clash = next(
            (
                box
                for box in taken
                if x < box[2] and box[0] < x + width and y < box[3] and box[1] < y + height
            ),
            None,
        )
        if clash is None or clash[3] + 1 + height > size[1]:
            break
        y = clash[3] + 1
    taken.append((x, y, x + width, y + height))
    draw.rounded_rectangle(taken[-1], 4, fill=GROUPS[group][1])
    draw.text((x + 5, y + 1), text, fill="white", font=font)
