"""What a split of a generated data set depends on: keys of the recipe, the generator, its assets.

A training reads the train split alone, so a key that affects only val or dev does not belong to
its fingerprint. `tests/unit/test_identity.py` generates the splits with each key changed and
compares.
"""

from __future__ import annotations

from pcb.errors import UserError

# Incremented when the same recipe and assets give other files.
GENERATOR = 1

# Split -> keys of `synthetic` that do not affect its annotation file and images. Every other key,
# also a new one, does. `pretrain` is the only split of the data set of that name.
UNREAD = {
    "train": {"val_images", "dev_images", "pretrain_images", "novel_styles", "negatives"},
    "val": {"train_images", "dev_images", "pretrain_images"},
    "dev": {"train_images", "val_images", "pretrain_images"},
    "pretrain": {
        "train_images",
        "val_images",
        "dev_images",
        "head",
        "tail",
        "novel_styles",
        "negatives",
    },
}


def recipe_of(section: dict, split: str) -> dict:
    """The part of the `synthetic` section of a scale that a split depends on.

    Args:
        section: The section.
        split: `train`, `val`, `dev`, or `pretrain` for the data set of the pretraining.

    Raises:
        UserError: There is no such split.
    """
    if split not in UNREAD:
        raise UserError(f"no split {split!r} is generated", f"choose one of {sorted(UNREAD)}")
    return {key: value for key, value in section.items() if key not in UNREAD[split]}
