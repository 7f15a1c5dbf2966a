"""The gathered content of the pages of images, as values for their templates.

Coordinates are scaled so that the longer side of every image is `UNITS` long: outlines and labels
then look the same everywhere.
"""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

from pcb.frequency import GROUP_NAMES

UNITS = 300
FONT_SIZE, LABEL_HEIGHT = 11.5, 15  # of an object's label, in units
KINDS = {
    "gains": "recognised with PCB only",
    "losses": "recognised without PCB only",
    "random": "drawn from all images",
}
Box = tuple[float, float, float, float]  # left, top, right, bottom


def sections(comparison: dict, key: str, least: float) -> list[dict]:
    """The images of one comparison of the gallery, by kind.

    Args:
        comparison: Its entry in the gathered file.
        key: Prefix of the ids of its elements, unique on the page.
        least: Lowest score of a drawn detection.

    Returns:
        For each kind its `title`, `count` (how many images of how many), `note` and `shots`.
    """
    out = []
    for kind, title in KINDS.items():
        images = [
            (k, image) for k, image in enumerate(comparison["images"]) if image["kind"] == kind
        ]
        label = comparison["label"]
        out.append(
            {
                "title": f"{label}: {title}",
                "count": count_text(comparison, kind, len(images)),
                "note": "" if out else score_note(comparison, least),
                "shots": [shot(label, image, f"{key}-{k}") for k, image in images],
            }
        )
    return out


def count_text(comparison: dict, kind: str, shown: int) -> str:
    """How many images are shown: `5 shown of 31 objects: 4 rare and 27 common`."""
    if kind == "random":
        return f"{shown} shown"
    counts = {GROUP_NAMES[g]: comparison["counts"][g][kind] for g in "rc"}
    groups = " and ".join(f"{count} {group}" for group, count in counts.items())
    if not (total := sum(counts.values())):
        return "none"
    return f"{shown} shown of {total} object{'s' if total != 1 else ''}: {groups}"


def score_note(comparison: dict, least: float) -> str:
    """A note on the scores of both models, for the comparison of two panels."""
    before, after = (
        "none" if score is None else score_text(score) for score in comparison["median_scores"]
    )
    return (
        f"Median score of recognised objects: {comparison['label']} {before}, with PCB {after}. "
        f"Detections with a score of at least {score_text(least)} are drawn, and the strongest "
        "one on the object in question."
    )


def shot(label: str, image: dict, key: str) -> dict:
    """One image three times: ground truth, before, after.

    Args:
        label: The base method.
        image: Its entry in the gathered file.
        key: Id of its thumbnail on the page.
    """
    sources = ("ground truth", label, f"{label} + PCB")
    objects = [image["truth"], *(p["objects"] for p in image["panels"])]
    panels = [panel(image, shown) for shown in objects]
    omitted = (0, *(p["more"] for p in image["panels"]))
    for source, p, more in zip(sources, panels, omitted, strict=True):
        texts = ", ".join(o["text"] for o in reversed(p["objects"])) or "nothing"
        p["who"] = source + (f" ({more} more not drawn)" if more else "")
        p["alt"] = f"{source}: {texts}"
    return {
        "key": key,
        "id": image["id"],
        "thumbnail": image["thumbnail"],
        "panels": panels,
        "caption": caption(label, image),
    }


def caption(label: str, image: dict) -> str:
    """One sentence on the object in question, or the image's id."""
    if "object" not in image:
        return f"Image {image['id']}"
    before, after = (
        f"{p['name']} {score_text(p['score'])}" if p else "undetected" for p in image["predictions"]
    )
    name, group = image["object"]["name"].capitalize(), GROUP_NAMES[image["object"]["group"]]
    return f"{name} ({group}) in image {image['id']}. {label}: {before}. With PCB: {after}."


def pair_lists(comparison: dict) -> list[dict]:
    """The pairs of one comparison: those chosen before PCB, then those chosen after it."""
    label = comparison["label"]
    titles = {
        "before": f"{label}: most one-sided before PCB",
        "after": f"{label}: most one-sided after PCB, not among those above",
    }
    return [
        {
            "title": title,
            "label": label,
            "pairs": [pair for pair in comparison["pairs"] if pair["chosen_by"] == end],
        }
        for end, title in titles.items()
    ]


def panel(image: dict, objects: list[dict]) -> dict:
    """One image with outlined and labelled objects.

    Args:
        image: `width` and `height` in pixels.
        objects: What is drawn, strongest first.

    Returns:
        Sizes in units, the `scale` of paths from pixels to units, and the objects with text and
        position of their labels; the last one is drawn on top.
    """
    scale = UNITS / max(image["width"], image["height"])
    width, height = image["width"] * scale, image["height"] * scale
    occupied: list[Box] = []
    labelled = []
    # The object in question comes first, for its label gets the best position.
    for shown in sorted(objects, key=lambda o: not o.get("focus")):
        text = shown["name"] + (f" {score_text(shown['score'])}" if "score" in shown else "")
        label_width = LABEL_HEIGHT + 4 + text_width(text)
        x = min(max(0.0, shown["box"][0] * scale), max(0.0, width - label_width))
        y = free_position(x, shown["box"][1] * scale, label_width, height, occupied)
        occupied.append((x, y, x + label_width, y + LABEL_HEIGHT))
        labelled.append(
            {
                **shown,
                "text": text,
                "x": round(x, 1),
                "y": round(y, 1),
                "w": round(label_width, 1),
                "tw": round(label_width - LABEL_HEIGHT - 4, 1),
            }
        )
    return {
        "width": round(width, 1),
        "height": round(height, 1),
        "scale": round(scale, 4),
        "objects": labelled[::-1],
    }


def free_position(x: float, y: float, width: float, height: float, occupied: list[Box]) -> float:
    """The top of a label at `x` that overlaps no other label.

    Args:
        x: Left of the label.
        y: Wanted top; positions below it are tried first, then those above it.
        width: Width of the label.
        height: Height of the image.
        occupied: Boxes of the other labels.
    """
    y = min(max(0.0, y), height - LABEL_HEIGHT)
    for step in (1, -1):
        top = y
        while 0 <= top <= height - LABEL_HEIGHT:
            clash = next(
                (
                    box
                    for box in occupied
                    if x < box[2] and box[0] < x + width
                    if top < box[3] and box[1] < top + LABEL_HEIGHT
                ),
                None,
            )
            if clash is None:
                return top
            top = clash[3] + 0.5 if step > 0 else clash[1] - LABEL_HEIGHT - 0.5
    return y


def score_text(score: float) -> str:
    """A score as labels show it: `.71`."""
    return f"{score:.2f}".removeprefix("0")


@lru_cache(maxsize=4096)
def text_width(text: str) -> float:
    """Width of a label's text in units; the page fits the reader's font into it."""
    return label_font().getlength(text)


@lru_cache
def label_font() -> ImageFont.FreeTypeFont:
    """The font that is measured."""
    font = ImageFont.load_default(FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow with FreeType, as wheels have it
    return font
