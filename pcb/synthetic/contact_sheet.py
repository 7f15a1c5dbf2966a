"""Contact sheet: scenes of a data set with mask outlines, class names and frequency groups.

contact_sheet("data/v05/train.json", "data/v05/images", "sheet.png")
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pcb.data.lvis.image_files import read_picture
from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError
from pcb.files import atomic
from pcb.synthetic.scenes import random_state

GROUPS = {"r": ("rare", "#c2410c"), "c": ("common", "#1d4ed8"), "f": ("frequent", "#15803d")}
PAPER, INK, FAINT = "#fbfaf7", "#22252a", "#6b7280"
GAP, HEADER = 14, 64  # pixels: space between scenes, height of the header

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels


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
    """Draw random images that have annotations on one page.

    Args:
        annotations: Annotation file in LVIS format.
        images: Image folder.
        out: PNG file to write.
        count: Number of images.
        columns: Images in a row.
        side: Side in pixels that each image is fitted into.
        seed: Seed of the choice of images.
        at_most: Objects drawn on each image, the largest ones.

    Returns:
        The path of the page.

    Raises:
        UserError: The annotation file is broken, or no image exists.
    """
    index = LVISIndex(annotations, images)
    available = [
        image
        for image in index.images
        if index.by_image[image["id"]] and index.image_paths[image["id"]].is_file()
    ]
    if not available:
        raise UserError(
            f"{index.folder} has none of the images of {index.path}",
            "correct the image folder, or generate the data",
        )
    order = random_state("sheet", seed).permutation(len(available))[:count]
    chosen = [available[i] for i in sorted(order)]
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    pitch = side + GAP
    page = Image.new("RGB", (columns * pitch + GAP, HEADER + rows * pitch), PAPER)
    draw_header(page, index)
    for position, image in enumerate(chosen):
        objects = sorted(index.by_image[image["id"]], key=lambda a: -a["area"])[:at_most]
        picture = read_picture(index.image_paths[image["id"]])
        tile = annotated_image(picture, objects, index, side)
        row, column = divmod(position, columns)
        left = GAP + column * pitch + (side - tile.width) // 2
        top = HEADER + row * pitch + (side - tile.height) // 2
        page.paste(tile, (left, top))
    with atomic(out) as temporary:
        page.save(temporary, format="PNG")
    return Path(out)


def draw_header(page: Image.Image, index: LVISIndex) -> None:
    """Write the name of the file, what it holds, and the colours of the three groups."""
    draw = ImageDraw.Draw(page)
    title = f"{index.path.parent.name}/{index.path.name}"
    draw.text((GAP, 12), title, fill=INK, font=ImageFont.load_default(20))
    facts = (
        f"LVIS {index.version} format   {len(index)} images   "
        f"{index.annotation_count} instances   {len(index.classes)} classes"
    )
    draw.text((GAP, 38), facts, fill=FAINT, font=ImageFont.load_default(13))
    font, groups = ImageFont.load_default(14), index.frequency()
    x = page.width - GAP
    for group in "fcr":
        name, colour = GROUPS[group]
        text = f"{name} ({groups.count(group)})"
        x -= int(draw.textlength(text, font=font))
        draw.text((x, 14), text, fill=INK, font=font)
        draw.rounded_rectangle((x - 20, 17, x - 7, 30), 3, fill=colour)
        x -= 40


def annotated_image(
    image: Image.Image, objects: list[dict], index: LVISIndex, side: int
) -> Image.Image:
    """Fit an image into `side` pixels and draw the outlines and names of objects."""
    scale = side / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    tile = image.resize((width, height), Image.Resampling.LANCZOS)
    groups = index.frequency()
    draw = ImageDraw.Draw(tile)
    for annotation in objects:
        if not isinstance(annotation["segmentation"], list):
            continue  # run-length encoded, as crowds are
        colour = GROUPS[groups[annotation["category_id"] - 1]][1]
        for polygon in annotation["segmentation"]:
            corners = [
                (scale * x, scale * y) for x, y in zip(polygon[::2], polygon[1::2], strict=True)
            ]
            draw.line([*corners, corners[0]], fill="white", width=4, joint="curve")
            draw.line([*corners, corners[0]], fill=colour, width=2, joint="curve")
    occupied: list[Box] = []
    for annotation in sorted(objects, key=lambda a: a["bbox"][1]):
        label = annotation["category_id"] - 1
        x, y, box_width, _ = annotation["bbox"]
        anchor = scale * (x + box_width / 2), scale * y
        name, size = index.classes[label], (width, height)
        occupied.append(draw_label(draw, name, groups[label], anchor, size, occupied))
    return tile


def draw_label(
    draw: ImageDraw.ImageDraw,
    name: str,
    group: str,
    anchor: tuple[float, float],
    size: tuple[int, int],
    occupied: list[Box],
) -> Box:
    """Write a class name above its object, or lower if another label is there.

    Args:
        draw: The image's canvas.
        name: Class name.
        group: `r`, `c` or `f`.
        anchor: Middle of the upper edge of the object's box, in pixels of the canvas.
        size: Width and height of the canvas in pixels.
        occupied: Boxes of earlier labels.

    Returns:
        The box of the label.
    """
    font = ImageFont.load_default(12)
    text = f"{name.split('_(')[0].replace('_', ' ')}  {group}"
    width, height = draw.textlength(text, font=font) + 10, 17
    x = min(max(0, anchor[0] - width / 2), max(0, size[0] - width - 1))
    y = min(max(0, anchor[1] - height / 2), size[1] - height - 1)
    for _ in range(len(occupied) + 1):
        hit = [
            box
            for box in occupied
            if x < box[2] and box[0] < x + width and y < box[3] and box[1] < y + height
        ]
        if not hit or hit[0][3] + 1 + height > size[1]:
            break
        y = hit[0][3] + 1
    box = (x, y, x + width, y + height)
    draw.rounded_rectangle(box, 4, fill=GROUPS[group][1])
    draw.text((x + 5, y + 1), text, fill="white", font=font)
    return box
