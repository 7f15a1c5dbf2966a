"""Scenes of emoji-LVIS: sprites with random pose and colour on a smooth background.

`Atlas` holds the sprites and `draw_scene` composes a scene and the visible mask of each sprite.
Pixels are computed in integers, and random numbers come from `numpy.random.RandomState`, whose
streams NumPy guarantees not to change: a seed gives the same bytes on every machine.
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
LEVELS = (34, 48, 64)  # sides in pixels at which sprites are kept: none shrinks by more than 1.5
CHANNELS = np.uint64(0x00FF_00FF_00FF_00FF)  # low bytes of the four channels of a packed pixel
TRIES = 40  # random positions tried for a sprite; if all fail, the one that covers least is used


def random_state(*names: object) -> np.random.RandomState:
    """A generator seeded by `names`, independent of all others and of the order of calls."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))


class Atlas:
    """The committed sprites: sprites.webp and sprites.json, written by tools/build_sprites.py.

    Attributes:
        index: Content of sprites.json: side of a tile, columns, and each class's tiles by style.
        path: The WebP image.
    """

    def __init__(self, folder: Path = ASSETS):
        self.index = json.loads((folder / "sprites.json").read_text(encoding="utf-8"))
        self.path = folder / "sprites.webp"

    @cached_property
    def pixels(self) -> Image.Image:
        """The decoded image, RGBA."""
        return Image.open(self.path).convert("RGBA")

    def styles(self, name: str) -> dict[str, int]:
        """Map each style in which a class is drawn to its tile."""
        return self.index["classes"][name]["tiles"]

    @cache  # noqa: B019  the atlas lives as long as the process
    def sprite(self, tile: int, side: int) -> np.ndarray:
        """A tile scaled to `side` pixels, with a transparent border of one pixel.

        Returns:
            (side + 2, side + 2) uint64: premultiplied red, green, blue and alpha, 16 bits each.
        """
        size, columns = self.index["tile"], self.index["columns"]
        x, y = tile % columns * size, tile // columns * size
        rgba = np.asarray(self.pixels.crop((x, y, x + size, y + size)), dtype=np.int32)
        colour, alpha = rgba[..., :3], rgba[..., 3:]
        rgba = np.dstack([(colour * alpha + 127) // 255, alpha]).astype(np.uint8)
        if side != size:
            # Channel by channel: Pillow would premultiply an RGBA image once more.
            channels = [Image.fromarray(np.ascontiguousarray(rgba[..., c])) for c in range(4)]
            scaled = [c.resize((side, side), Image.Resampling.BILINEAR) for c in channels]
            rgba = np.dstack([np.asarray(c) for c in scaled])
        return np.pad(np.ascontiguousarray(rgba.astype("<u2")).view("<u8")[..., 0], 1)


@cache
def atlas() -> Atlas:
    """The atlas of this process."""
    return Atlas()


@dataclass(frozen=True)
class SceneStyle:
    """How scenes are drawn.

    Attributes:
        size: Side of a scene in pixels.
        sprite: Smallest and largest side of a sprite in pixels.
        overlap: Largest share of a sprite that later ones may cover, where positions allow it.
        rotation: Largest rotation in degrees, either way.
        hue: Largest rotation of the hue in degrees, either way.
        saturation: Smallest and largest factor of the saturation.
        brightness: Smallest and largest factor of the brightness.
    """

    size: int = 96
    sprite: tuple[int, int] = (28, 48)
    overlap: float = 0.2
    rotation: float = 15.0
    hue: float = 12.0
    saturation: tuple[float, float] = (0.7, 1.3)
    brightness: tuple[float, float] = (0.75, 1.15)


def draw_scene(
    tiles: list[int], rng: np.random.RandomState, style: SceneStyle
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Compose sprites into a scene, the first at the back.

    Args:
        tiles: Tile of each sprite.
        rng: Draws background, poses and positions.
        style: Sizes and ranges.

    Returns:
        The scene, (size, size, 3) uint8, and the visible pixels of each sprite, (size, size) bool.
    """
    image = background(rng, style.size)
    owner = np.full((style.size, style.size), -1, np.int64)
    areas: list[int] = []
    for number, tile in enumerate(tiles):
        patch = transform_sprite(tile, rng, style)
        y, x = find_position(patch[..., 3] >= 128, owner, areas, rng, style)
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
        shade = (rng.random_sample((cells, cells, 1)) - 0.5) * 2 * grey
        noise = shade + (rng.random_sample((cells, cells, 3)) - 0.5) * 2 * colour
        ramp = _ramp(size, cells)
        coarse = np.rint(noise * 16).astype(np.int64).reshape(cells, -1)
        rows = (ramp @ coarse).reshape(size, cells, 3)
        out += ramp @ rows >> 20  # in units of 16 * 256 * 256 = 2**20
    return np.clip(out + 120 + int(rng.random_sample() * 60), 0, 255).astype(np.int32)


@cache
def _ramp(size: int, cells: int) -> np.ndarray:
    """Weights of linear interpolation, (size, cells) integers whose rows sum to 256."""
    weights = np.zeros((size, cells), np.int64)
    for i in range(size):
        position = (2 * i + 1) * (cells - 1) * 128 // size
        left = min(position // 256, cells - 2)
        weights[i, left + 1] = position - 256 * left
        weights[i, left] = 256 - weights[i, left + 1]
    return weights


def transform_sprite(tile: int, rng: np.random.RandomState, style: SceneStyle) -> np.ndarray:
    """Give a sprite a random size, rotation, flip and colour, and crop it to its visible part.

    Returns:
        (h, w, 4) int32: premultiplied red, green, blue and alpha within 0-255.
    """
    low, high = style.sprite
    side = low + (high - low) * rng.random_sample()
    level = next((level for level in LEVELS if level >= side), LEVELS[-1])
    angle = math.radians(style.rotation) * (2 * rng.random_sample() - 1)
    flip = -1 if rng.random_sample() < 0.5 else 1
    matrix = colour_matrix(rng, style)
    sprite = atlas().sprite(tile, level)
    # Inverse mapping in 16.16 fixed point, from the patch's pixel centres to the sprite's, whose
    # border is included. `offset` is twice the distance from the centre.
    scale = 65536 * level / side
    cos, sin = round(scale * math.cos(angle)), round(scale * math.sin(angle))
    extent = math.ceil(side * 1.25)
    offset = 2 * np.arange(extent, dtype=np.int64) - (extent - 1)
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


def colour_matrix(rng: np.random.RandomState, style: SceneStyle) -> np.ndarray:
    """Random hue rotation about the grey axis, saturation and brightness.

    Returns:
        (3, 3) int32 matrix for RGB columns, in units of 1/1024.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * rng.random_sample()

    hue = math.radians(style.hue) * (2 * rng.random_sample() - 1)
    saturation = uniform(*style.saturation)
    brightness = uniform(*style.brightness)
    same, turn = saturation * math.cos(hue), saturation * math.sin(hue) / math.sqrt(3)
    grey = (1 - same) / 3
    rows = [
        [grey + same, grey - turn, grey + turn],
        [grey + turn, grey + same, grey - turn],
        [grey - turn, grey + turn, grey + same],
    ]
    return np.array([[round(1024 * brightness * value) for value in row] for row in rows], np.int32)


def find_position(
    mask: np.ndarray,
    owner: np.ndarray,
    areas: list[int],
    rng: np.random.RandomState,
    style: SceneStyle,
) -> tuple[int, int]:
    """Draw a position where no earlier sprite ends up covered by more than `style.overlap`.

    If `TRIES` positions fail, the one that covers least is taken.

    Args:
        mask: Solid pixels of the new sprite, (h, w) bool.
        owner: Number of the sprite that each pixel of the scene shows, (size, size); -1 for none.
        areas: Solid pixels of each earlier sprite before anything covered it.
        rng: Draws the positions.
        style: Size of the scene and largest overlap.

    Returns:
        Row and column of the upper left corner.
    """
    height, width = mask.shape
    positions = rng.random_sample((TRIES, 2))
    visible = np.bincount(owner.ravel() + 1, minlength=len(areas) + 1)[1:].tolist()
    best, least = (0, 0), math.inf
    for down, across in positions:
        y, x = int(down * (style.size - height + 1)), int(across * (style.size - width + 1))
        below = owner[y : y + height, x : x + width][mask]
        covered = np.bincount(below + 1, minlength=len(areas) + 1)[1:].tolist()
        shares = [
            1 - (still - now) / area
            for still, now, area in zip(visible, covered, areas, strict=True)
            if now
        ]
        worst = max(shares, default=0)
        if worst < least:
            best, least = (y, x), worst
        if worst <= style.overlap:
            break
    return best
