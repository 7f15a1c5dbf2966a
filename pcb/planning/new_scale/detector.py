"""A detector that fits device and images: a shipped one, or a config that inherits from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcb.data.lvis.index import LVISIndex
from pcb.formatting import size
from pcb.planning.new_scale.own import DETECTORS, MARK, Own

# The small detector caches the features of an image: bytes at 96 px (frozen_backbone.py), and how
# much a job may take. The sides of images, and of the objects that it was pretrained on, in pixels.
CACHE_BYTES, CACHE_BUDGET = 350_000, 600e6
SIDES = (96, 128, 160, 192, 224, 256)
OBJECT_SIDE = 32
# LVIS's detector shows COCO's photographs, 480 px high, at 800.
ENLARGEMENT, LARGEST = 5 / 3, (1333, 800)


@dataclass(frozen=True)
class Detector:
    """A detector config.

    Attributes:
        base: The shipped config that it inherits, or is.
        path: The file.
        text: Its content; "" where it is a shipped one.
        reason: Why it fits.
    """

    base: str
    path: Path
    text: str
    reason: str


DETECTOR_TEXT = '''"""The detector of the scale {name}: {base} for images of another size.

{mark} with {name}.yaml; both can be edited.
"""

_base_ = "{folder}{base}"

{model}train_pipeline = [
    dict(type="LoadImageFromFile"),
    {load},
    {resize},
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale={scale}, keep_ratio=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
'''
# Photographs show more objects than the scenes that the small detector was made for.
MORE_PROPOSALS = """model = dict(
    train_cfg=dict(rpn_proposal=dict(nms_pre=400, max_per_img=100)),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=100)),
)

"""


def detector_file(own: Own, base: str, **values: str) -> tuple[Path, str]:
    """The path of a detector config of one's own, and its content."""
    path = own.scale_file.with_suffix(".py") if own.out else DETECTORS / f"{own.name}.py"
    folder = f"{DETECTORS.as_posix()}/" if own.out else ""
    return path, DETECTOR_TEXT.format(name=own.name, base=base, folder=folder, mark=MARK, **values)


def small_detector(own: Own, train: LVISIndex, val: LVISIndex) -> Detector:
    """The detector of `mini` at the side that objects need and the feature cache allows.

    Where the cache would not even hold images of 96 px, images are resized at random, which turns
    it off (`pcb.training.build.feature_cache`).
    """
    base, sides = "mini_r18.py", object_sides(train)
    relative = float(np.median(sides))
    # Training images are cached twice, for the flip, and with their masks.
    images = max(2 * int(np.count_nonzero(train.has_usable)), len(val))

    def cache_bytes(side: int) -> float:
        return images * CACHE_BYTES * (side / SIDES[0]) ** 2 + 2 * len(sides) * side**2

    needed = next((s for s in SIDES if s * relative >= OBJECT_SIDE), SIDES[-1])
    fitting = [s for s in SIDES if s <= needed and cache_bytes(s) <= CACHE_BUDGET]
    cached, side = bool(fitting), fitting[-1] if fitting else needed
    if cached:
        load, resize = "LoadAnnotations", f'dict(type="Resize", scale={(side, side)}'
    else:
        scales = [(s, s) for s in (round(side * 0.8), side)]
        load, resize = "LoadWindowMasks", f'dict(type="RandomChoiceResize", scales={scales}'
    path, text = detector_file(
        own,
        base,
        model=MORE_PROPOSALS,
        load=f'dict(type="{load}", with_bbox=True, with_mask=True)',
        resize=f"{resize}, keep_ratio=True)",
        scale=str((side, side)),
    )
    reason = (
        f"half-width ResNet-18-FPN at {side} px, where a median object, {relative:.0%} of its "
        f"image's longer side, has {relative * side:.0f} px. Backbone, FPN and RPN stay frozen as "
        "they were trained on drawn scenes: it compares methods in minutes on a CPU, but finds "
        "little in photographs (--device cuda gives a detector to use)."
    )
    memory = f" Cached features take about {size(cache_bytes(side))} of memory." if cached else ""
    return Detector(base, path, text, reason + memory)


def object_sides(train: LVISIndex) -> np.ndarray:
    """The square root of each usable box's area, as a share of its image's longer side."""
    sides = [np.zeros(0)]
    for row in range(len(train)):
        objects = train.objects(row)
        boxes = objects.bbox[objects.usable.astype(bool)]
        sides.append(np.sqrt(boxes[:, 2] * boxes[:, 3]) / train.sizes[row].max())
    return np.concatenate(sides)


def large_detector(own: Own, train: LVISIndex) -> Detector:
    """The paper's Mask R-CNN, R50-FPN, at sizes that fit the images."""
    base, short = "lvis_r50.py", float(np.median(train.sizes.min(axis=1)))
    side = min(LARGEST[1], max(160, 32 * round(short * ENLARGEMENT / 32)))
    if side == LARGEST[1]:
        reason = "ResNet-50-FPN at 1333x800, as in the paper, from ImageNet weights"
        return Detector(base, DETECTORS / base, "", reason)
    longest = round(LARGEST[0] * side / LARGEST[1])
    scales = [(longest, round(side * share)) for share in (0.8, 0.84, 0.88, 0.92, 0.96, 1)]
    path, text = detector_file(
        own,
        base,
        model="",
        load='dict(type="LoadWindowMasks", with_bbox=True, with_mask=True)',
        resize='dict(\n        type="RandomChoiceResize",\n'
        f"        scales={scales},\n        keep_ratio=True,\n    )",
        scale=str((longest, side)),
    )
    reason = (
        f"ResNet-50-FPN at up to {longest}x{side}: images are {short:.0f} px at their shorter side "
        "(median) and are enlarged as much as COCO's, 480 px to 800, in the paper; from ImageNet "
        "weights"
    )
    return Detector(base, path, text, reason)
