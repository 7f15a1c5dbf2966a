"""Scenes of emoji-LVIS: sprites with random pose and colour on a smooth background, and each sprite's visible mask.

`Atlas` holds the sprites, `draw` composes a scene. Pixels are computed in integers, and random numbers come from
`numpy.random.RandomState`, whose streams are frozen for good: a seed gives the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from PIL import Image

ASSETS = Path(__file__).parent / "assets"
LEVELS = (
    34,
    48,
    64,
)  # sides at which a sprite is kept, so that no pose shrinks it by more than 1.5
CHANNELS = np.uint64(0x00FF_00FF_00FF_00FF)
TRIES = 40  # random positions tried for a sprite before the least covering one is taken


def random_state(*names: object) -> np.random.RandomState:
    """A generator for the thing called by these names, independent of every other and of the order of calls."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))


class Atlas:
    """The committed sprites (sprites.webp, sprites.json, made by tools/build_sprites.py)."""

    def __init__(self, folder: Path = ASSETS):
        self.index = json.loads((folder / "sprites.json").read_text())
        self.path = folder / "sprites.webp"

    @cached_property
    def pixels(self) -> Image.Image:
        return Image.open(self.path).convert("RGBA")

    def styles(self, name: str) -> dict[str, int]:
        """Style -> tile of the class `name`."""
        return self.index["classes"][name]["tiles"]

    @cache
    def sprite(self, tile: int, side: int) -> np.ndarray:
        """Tile as (side + 2, side + 2) uint64: red, green, blue (premultiplied), alpha in 16 bits each; a transparent pixel around."""
        size, columns = self.index["tile"], self.index["columns"]
        x, y = tile % columns * size, tile // columns * size
        image = self.pixels.crop((x, y, x + size, y + size))
        rgba = np.asarray(image, dtype=np.int32)
        rgba = np.dstack([(rgba[..., :3] * rgba[..., 3:] + 127) // 255, rgba[..., 3:]]).astype(
            np.uint8
        )
        if side != size:
            rgba = np.dstack(
                [
                    np.asarray(
                        Image.fromarray(np.ascontiguousarray(rgba[..., c])).resize(
                            (side, side), Image.BILINEAR
                        )
                    )
                    for c in range(4)
                ]
            )
        return np.pad(np.ascontiguousarray(rgba.astype("<u2")).view("<u8")[..., 0], 1)


@cache
def atlas() -> Atlas:
    return Atlas()


@dataclass(frozen=True)
class Look:
    """How scenes are drawn. `sprite` is the range of a sprite's side in pixels; no sprite is covered by more than `overlap`."""

    size: int = 96
    sprite: tuple[int, int] = (28, 48)
    overlap: float = 0.2
    rotation: float = 15.0  # degrees, either way
    hue: float = 12.0  # degrees, either way
    saturation: tuple[float, float] = (0.7, 1.3)
    brightness: tuple[float, float] = (0.75, 1.15)


def draw(
    tiles: list[int], rng: np.random.RandomState, look: Look
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Compose the sprites `tiles` into a scene.

    Returns the scene, (size, size, 3) uint8, and for each tile its visible pixels, (size, size) bool.
    """
    image = background(rng, look.size)
    owner = np.full((look.size, look.size), -1, np.int64)
    areas: list[int] = []
    for number, tile in enumerate(tiles):
        patch = pose(tile, rng, look)
        y, x = place(patch[..., 3] >= 128, owner, areas, rng, look)
        height, width = patch.shape[:2]
        below = image[y : y + height, x : x + width]
        alpha = patch[..., 3:]
        below[:] = np.minimum((below * (255 - alpha) + 127) // 255 + patch[..., :3], 255)
        owner[y : y + height, x : x + width][alpha[..., 0] >= 128] = number
        areas.append(int((alpha >= 128).sum()))
    return image.astype(np.uint8), [owner == number for number in range(len(tiles))]


def background(rng: np.random.RandomState, size: int) -> np.ndarray:
    """Smooth noise of low saturation, (size, size, 3) int32 within 0-255."""
    out = np.zeros((size, size, 3), np.int64)
    for cells, grey, colour in ((2, 60, 14), (4, 28, 10), (9, 16, 4)):
        noise = (rng.random_sample((cells, cells, 1)) - 0.5) * 2 * grey + (
            rng.random_sample((cells, cells, 3)) - 0.5
        ) * 2 * colour
        ramp = _ramp(size, cells)
        rows = (ramp @ np.rint(noise * 16).astype(np.int64).reshape(cells, -1)).reshape(
            size, cells, 3
        )
        out += ramp @ rows >> 20  # in units of 16 * 256 * 256 = 2**20
    return np.clip(out + 120 + int(rng.random_sample() * 60), 0, 255).astype(np.int32)


@cache
def _ramp(size: int, cells: int) -> np.ndarray:
    """Linear interpolation from `cells` values to `size`, (size, cells) integer weights that add up to 256."""
    weights = np.zeros((size, cells), np.int64)
    for i in range(size):
        position = (2 * i + 1) * (cells - 1) * 128 // size
        left = min(position // 256, cells - 2)
        weights[i, left + 1] = position - 256 * left
        weights[i, left] = 256 - weights[i, left + 1]
    return weights


def pose(tile: int, rng: np.random.RandomState, look: Look) -> np.ndarray:
    """The sprite with random size, rotation, flip and colour: (h, w, 4) int32, premultiplied, cut to its visible part."""
    low, high = look.sprite
    side = low + (high - low) * rng.random_sample()
    level = next((level for level in LEVELS if level >= side), LEVELS[-1])
    angle = math.radians(look.rotation) * (2 * rng.random_sample() - 1)
    flip = -1 if rng.random_sample() < 0.5 else 1
    matrix = colour_matrix(rng, look)
    sprite = atlas().sprite(tile, level)
    # Inverse mapping in 16.16 fixed point: from the patch's pixel centres to the sprite's, the pad included.
    scale = 65536 * level / side
    cos, sin = round(scale * math.cos(angle)), round(scale * math.sin(angle))
    extent = math.ceil(side * 1.25)
    offset = 2 * np.arange(extent, dtype=np.int64) - (
        extent - 1
    )  # twice the distance from the centre
    middle, last = (level + 1) * 32768, (level + 1) * 65536 - 1
    u = (middle + flip * (offset[None, :] * cos + offset[:, None] * sin >> 1)).clip(0, last)
    v = (middle + (offset[:, None] * cos - offset[None, :] * sin >> 1)).clip(0, last)
    # Bilinear interpolation of all four channels at once: 255 * 256 fits into a channel's 16 bits.
    flat, stride = sprite.ravel(), level + 2
    corner = (v >> 16) * stride + (u >> 16)
    fx, fy = (u >> 8 & 255).astype(np.uint64), (v >> 8 & 255).astype(np.uint64)
    upper = flat[corner] * (256 - fx) + flat[corner + 1] * fx
    lower = flat[corner + stride] * (256 - fx) + flat[corner + stride + 1] * fx
    mixed = (upper >> 8 & CHANNELS) * (256 - fy) + (lower >> 8 & CHANNELS) * fy >> 8 & CHANNELS
    patch = mixed.astype("<u8").view("<u2").reshape(extent, extent, 4).astype(np.int32)
    solid = patch[..., 3] >= 128
    rows, columns = np.nonzero(solid.any(1))[0], np.nonzero(solid.any(0))[0]
    patch = patch[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    patch[..., :3] = (patch[..., :3] @ matrix.T >> 10).clip(0, patch[..., 3:])
    return patch


def colour_matrix(rng: np.random.RandomState, look: Look) -> np.ndarray:
    """Random hue rotation about the grey axis, saturation and brightness, as a (3, 3) integer matrix in units of 1/1024."""
    hue = math.radians(look.hue) * (2 * rng.random_sample() - 1)
    saturation = (
        look.saturation[0] + (look.saturation[1] - look.saturation[0]) * rng.random_sample()
    )
    brightness = (
        look.brightness[0] + (look.brightness[1] - look.brightness[0]) * rng.random_sample()
    )
    same, turn = saturation * math.cos(hue), saturation * math.sin(hue) / math.sqrt(3)
    grey = (1 - same) / 3
    rows = [
        [grey + same, grey - turn, grey + turn],
        [grey + turn, grey + same, grey - turn],
        [grey - turn, grey + turn, grey + same],
    ]
    return np.array([[round(1024 * brightness * value) for value in row] for row in rows], np.int32)


def place(
    mask: np.ndarray, owner: np.ndarray, areas: list[int], rng: np.random.RandomState, look: Look
) -> tuple[int, int]:
    """Upper left corner of a position where `mask` covers no earlier sprite by more than `look.overlap`.

    Earlier covering counts. Where `TRIES` positions fail, the one that covers least is taken.
    """
    height, width = mask.shape
    spots = rng.random_sample((TRIES, 2))
    visible = np.bincount(owner.ravel() + 1, minlength=len(areas) + 1)[1:]
    best, least = (0, 0), math.inf
    for down, across in spots:
        y, x = int(down * (look.size - height + 1)), int(across * (look.size - width + 1))
        covered = np.bincount(
            owner[y : y + height, x : x + width][mask] + 1, minlength=len(areas) + 1
        )[1:]
        worst = max(
            (
                1 - (v - c) / a
                for v, c, a in zip(visible.tolist(), covered.tolist(), areas, strict=True)
                if c
            ),
            default=0,
        )
        if worst < least:
            best, least = (y, x), worst
        if worst <= look.overlap:
            break
    return best
