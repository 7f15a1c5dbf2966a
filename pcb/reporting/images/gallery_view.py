"""Gathered images as a page shows them: `parts(comparison, key)` for the gallery, `panel` an image with outlines and names, as SVG values.

Coordinates are scaled so that an image's longer side has `UNITS`, whatever its pixels: outlines and names then look alike everywhere.
"""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

from pcb.frequency import GROUP_NAMES

UNITS = 300
FONT, LINE = 11.5, 15  # of a name: size, and height of its ground
KINDS = {
    "gains": "recognised with PCB only",
    "losses": "recognised without PCB only",
    "random": "drawn from all images",
}


def parts(comparison: dict, key: str, least: float) -> list[dict]:
    """The images of one comparison by kind: title, how many of how many, and the shots. `key` makes ids that no other comparison has;
    detections under the score `least` were left out."""
    out = []
    for kind, title in KINDS.items():
        images = [
            (k, image) for k, image in enumerate(comparison["images"]) if image["kind"] == kind
        ]
        groups = "rc" if kind != "random" else ""
        pool = {g: comparison["counts"][g][kind] for g in groups}
        count = (
            f"{len(images)} of "
            + " and ".join(f"{n} {GROUP_NAMES[g]}" for g, n in pool.items())
            + " objects"
            if pool
            else str(len(images))
        )
        out.append(
            {
                "title": f"{comparison['label']}: {title}",
                "count": count,
                "note": "" if out else scores(comparison, least),
                "shots": [shot(comparison["label"], image, f"{key}-{k}") for k, image in images],
            }
        )
    return out


def scores(comparison: dict, least: float) -> str:
    """What must be known of the scores before comparing two panels."""
    before, after = (
        "none" if score is None else said(score) for score in comparison["median_scores"]
    )
    return (
        f"Median score of what is recognised: {comparison['label']} {before}, with PCB {after}. Detections from {said(least)} on are "
        "drawn, and the strongest on the object in question."
    )


def shot(label: str, image: dict, key: str) -> dict:
    """An image three times: ground truth, before, after."""
    whose = ("ground truth", label, f"{label} + PCB")
    panels = [
        panel(image, objects)
        for objects in (image["truth"], *(p["objects"] for p in image["panels"]))
    ]
    for who, p, more in zip(whose, panels, (0, *(p["more"] for p in image["panels"])), strict=True):
        p["who"] = who + (f" ({more} more not drawn)" if more else "")
        p["alt"] = f"{who}: " + (", ".join(o["text"] for o in reversed(p["objects"])) or "nothing")
    return {
        "key": key,
        "id": image["id"],
        "photo": image["photo"],
        "panels": panels,
        "caption": sentence(label, image),
    }


def sentence(label: str, image: dict) -> str:
    if "object" not in image:
        return f"Image {image['id']}"
    found = image["object"]
    before, after = (
        f"{t['name']} {said(t['score'])}" if t else "nothing there" for t in image["taken"]
    )
    return f"{found['name'].capitalize()} ({GROUP_NAMES[found['group']]}) in image {image['id']}. {label}: {before}. With PCB: {after}."


def pairs(comparison: dict) -> list[dict]:
    """The pairs of one comparison: those chosen by the run before PCB, then those chosen by the run after."""
    label = comparison["label"]
    titles = {
        "before": f"{label}: most one-sided before PCB",
        "after": f"{label}: most one-sided after PCB, not among those above",
    }
    return [
        {
            "title": title,
            "label": label,
            "pairs": [pair for pair in comparison["pairs"] if pair["by"] == by],
        }
        for by, title in titles.items()
    ]


def panel(entry: dict, objects: list[dict]) -> dict:
    """One image with objects outlined and named, for the template: sizes, paths, and the names' places, strongest object on top."""
    scale = UNITS / max(entry["width"], entry["height"])
    size = entry["width"] * scale, entry["height"] * scale
    taken: list[tuple[float, float, float, float]] = []
    shown = []
    for found in sorted(
        objects, key=lambda o: not o.get("focus")
    ):  # the object in question gets the best place for its name
        text = found["name"] + (f" {said(found['score'])}" if "score" in found else "")
        width = LINE + 4 + textwidth(text)
        x = min(max(0.0, found["box"][0] * scale), max(0.0, size[0] - width))
        y = free(x, found["box"][1] * scale, width, size[1], taken)
        taken.append((x, y, x + width, y + LINE))
        shown.append(
            {
                **found,
                "text": text,
                "x": round(x, 1),
                "y": round(y, 1),
                "w": round(width, 1),
                "tw": round(width - LINE - 4, 1),
            }
        )
    return {
        "width": round(size[0], 1),
        "height": round(size[1], 1),
        "scale": round(scale, 4),
        "objects": shown[::-1],
    }


def free(x: float, y: float, width: float, height: float, taken: list) -> float:
    """The height, from y downwards and then upwards, at which a name overlaps none of those placed before."""
    y = min(max(0.0, y), height - LINE)
    for step in (1, -1):
        at = y
        while 0 <= at <= height - LINE:
            clash = next(
                (
                    box
                    for box in taken
                    if x < box[2] and box[0] < x + width and at < box[3] and box[1] < at + LINE
                ),
                None,
            )
            if clash is None:
                return at
            at = clash[3] + 0.5 if step > 0 else clash[1] - LINE - 0.5
    return y


def said(score: float) -> str:
    """`.71`, as detections are labelled."""
    return f"{score:.2f}".removeprefix("0")


@lru_cache(maxsize=4096)
def textwidth(text: str) -> float:
    """Width of a name in UNITS; the page then fits the reader's font into it."""
    return font().getlength(text)


@lru_cache
def font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(FONT)
