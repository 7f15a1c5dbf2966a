"""Draw the sprite atlas of emoji-LVIS: emoji of LVIS categories, from six free emoji sets.

Run by hand when the set of classes changes; users of the project do not need it or its packages:

    npm install @iconify-json/{noto,twemoji,fluent-emoji-flat,fluent-emoji,fxemoji,emojione}
    pip install resvg-py pillow numpy pyyaml
    python tools/build_sprites.py --icons node_modules/@iconify-json --lvis lvis_v0.5_val.json

`--lvis` is any LVIS v0.5 annotation file, of which only the names, synonyms and frequencies of the
categories are read. Writes sprites.webp (64 px tiles) and sprites.json (frequency in LVIS, and tile
of each style, of every class) in pcb/synthetic/assets/.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path

import numpy as np
import resvg_py
import yaml
from PIL import Image

ASSETS = Path(__file__).resolve().parents[1] / "pcb/synthetic/assets"
TILE = 64  # side of a tile in pixels
COLUMNS = 40  # tiles in a row
PRETRAIN = 136  # pretraining classes, none of them a task class
MIN_STYLES = 4  # drawings that a class must have
STYLES = ("noto", "twemoji", "fluent-emoji-flat", "fluent-emoji", "fxemoji", "emojione")
# These packages list the code point of each icon; in the others, icons are found by their names.
NAMED_BY_CODE = STYLES[:3]

# LVIS names whose emoji has another name, which is not a synonym in LVIS.
ALIASES = {
    "apple": "red-apple",
    "sheep": "ewe",
    "bull": "ox",
    "tennis_ball": "tennis",
    "football_(American)": "american-football",
    "truck": "delivery-truck",
    "minivan": "minibus",
    "yacht": "sailboat",
    "jeep": "sport-utility-vehicle",
    "race_car": "racing-car",
    "mandarin_orange": "tangerine",
    "motorboat": "speedboat",
    "boat": "ship",
    "mouse_(computer_equipment)": "computer-mouse",
    "cherry": "cherries",
    "grape": "grapes",
    "alligator": "crocodile",
    "squirrel": "chipmunk",
}
# Excluded: people, weapons and tobacco, and names whose emoji shows something else (food drawn as a
# living animal).
SKIP = {
    "baby",
    "pistol",
    "dagger",
    "cigarette",
    "syringe",
    "knight_(chess_piece)",
    "turkey_(food)",
    "fish_(food)",
    "octopus_(food)",
    "poster",
    "sparkler_(fireworks)",
    "shield",
    "gravestone",
}
# Excluded drawings: they show something else, or fill a square with sky.
WRONG = {
    ("bird", "fxemoji"),
    ("computer_keyboard", "fxemoji"),
    ("sunglasses", "fxemoji"),
    ("Ferris_wheel", "fxemoji"),
    ("boat", "fxemoji"),
    ("yacht", "fxemoji"),
}


def key(name: str) -> str:
    """Strip qualifier, case and separators: `Ferris wheel_(ride)` -> `ferriswheel`."""
    return re.sub(r"[-_' ]", "", re.sub(r"_\(.*", "", name)).lower()


class Icons:
    """The emoji sets: all names of an emoji, and its drawing in each style.

    Attributes:
        sets: Content of each style's icons.json.
        find: For each style, normalised name (`key`) -> icon.
        names: Code point -> normalised names in all sets.
    """

    def __init__(self, folder: Path):
        self.sets = {
            style: json.loads((folder / style / "icons.json").read_text(encoding="utf-8"))
            for style in STYLES
        }
        self.find = {style: self.lookup(icons) for style, icons in self.sets.items()}
        self.names: dict[str, set[str]] = {}
        for style in NAMED_BY_CODE:
            for code, name in json.loads(
                (folder / style / "chars.json").read_text(encoding="utf-8")
            ).items():
                self.names.setdefault(code, set()).add(key(name))

    @staticmethod
    def lookup(icons: dict) -> dict[str, str]:
        """Map normalised names and plain aliases of a set to its icons."""
        plain = {
            alias: spec["parent"]
            for alias, spec in icons.get("aliases", {}).items()
            if set(spec) == {"parent"}
        }
        return {
            key(name): target
            for name, target in [*plain.items(), *((n, n) for n in icons["icons"])]
            if target in icons["icons"]
        }

    def drawings(self, name: str) -> dict[str, str]:
        """Map each style to its icon of the emoji that any of the sets calls `name`."""
        others = set().union(*(names for names in self.names.values() if key(name) in names))
        wanted = [key(name), *sorted(others)]
        icons = {
            s: next((self.find[s][w] for w in wanted if w in self.find[s]), None) for s in STYLES
        }
        return {style: icon for style, icon in icons.items() if icon}

    def draw(self, style: str, icon: str) -> Image.Image:
        """Render an icon, crop its margin, and centre it on a tile, (TILE, TILE) RGBA."""
        icons, spec = self.sets[style], self.sets[style]["icons"][icon]
        box = [
            spec.get(k, icons.get(k, d))
            for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        ]
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{" ".join(map(str, box))}">{spec["body"]}</svg>'
        )
        large = Image.open(
            io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256, height=256)))
        ).convert("RGBA")
        bounds = large.getchannel("A").point(lambda a: 255 * (a >= 32)).getbbox()
        if bounds is None:
            raise ValueError(f"{style}/{icon} renders empty")
        cut = large.crop(bounds)
        scale = (TILE - 2) / max(cut.size)
        cut = cut.resize(
            [max(1, round(scale * side)) for side in cut.size], Image.Resampling.LANCZOS
        )
        tile = Image.new("RGBA", (TILE, TILE))
        tile.paste(cut, [(TILE - side) // 2 for side in cut.size])
        return tile


def choose(categories: list[dict], icons: Icons) -> dict[str, tuple[dict, dict[str, str]]]:
    """Choose all task classes, then those with the most styles, and no emoji twice.

    Returns:
        Class name -> (LVIS category, style -> icon), in alphabetical order.
    """
    clusters = yaml.safe_load((ASSETS / "classes.yaml").read_text(encoding="utf-8"))["clusters"]
    task = [name for names in clusters.values() for name in names]
    by_name = {c["name"]: c for c in categories}
    drawings_of = {}
    for category in categories:
        names = [ALIASES.get(category["name"], category["name"]), *category["synonyms"]]
        drawn = [
            {s: i for s, i in icons.drawings(n).items() if (category["name"], s) not in WRONG}
            for n in names
        ]
        options = [d for d in drawn if len(d) >= MIN_STYLES]
        if options and category["name"] not in SKIP:
            drawings_of[category["name"]] = options[0]
    missing = [name for name in task if name not in drawings_of]
    if missing:
        raise SystemExit(f"task classes without {MIN_STYLES} drawings: {missing}")
    others = sorted(
        (n for n in drawings_of if n not in task),
        key=lambda n: (-len(drawings_of[n]), by_name[n]["id"]),
    )
    chosen, taken = {}, set()
    for name in [*task, *others]:
        if len(chosen) == len(task) + PRETRAIN:
            break
        if taken.isdisjoint(drawings_of[name].items()):
            chosen[name] = (by_name[name], drawings_of[name])
            taken.update(drawings_of[name].items())
    return dict(sorted(chosen.items()))


def main() -> None:
    """Choose classes, draw their sprites and write the atlas."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--icons", type=Path, required=True, help="node_modules/@iconify-json")
    parser.add_argument("--lvis", type=Path, required=True, help="an LVIS v0.5 annotation file")
    parser.add_argument(
        "--quality", type=int, default=80, help="WebP quality of the colours (default: 80)"
    )
    args = parser.parse_args()
    icons = Icons(args.icons)
    chosen = choose(json.loads(args.lvis.read_text(encoding="utf-8"))["categories"], icons)
    tiles, index = [], {}
    for name, (category, drawings) in chosen.items():
        index[name] = {"frequency": category["frequency"], "tiles": {}}
        for style, icon in drawings.items():
            index[name]["tiles"][style] = len(tiles)
            tiles.append(icons.draw(style, icon))
    rows = -(-len(tiles) // COLUMNS)
    atlas = np.zeros((rows * TILE, COLUMNS * TILE, 4), np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // COLUMNS * TILE, i % COLUMNS * TILE
        atlas[y : y + TILE, x : x + TILE] = np.asarray(tile)
    Image.fromarray(atlas).save(
        ASSETS / "sprites.webp", quality=args.quality, alpha_quality=90, method=6
    )
    sources = {
        style: json.loads((args.icons / style / "package.json").read_text(encoding="utf-8"))[
            "version"
        ]
        for style in STYLES
    }
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in index.items()
    )
    header = f' "tile": {TILE},\n "columns": {COLUMNS},\n "sources": {json.dumps(sources)},\n'
    (ASSETS / "sprites.json").write_text(
        f'{{\n{header} "classes": {{\n{lines}\n }}\n}}\n', encoding="utf-8"
    )
    size = (ASSETS / "sprites.webp").stat().st_size / 1e6
    print(f"{len(index)} classes, {len(tiles)} sprites, {size:.2f} MB")


if __name__ == "__main__":
    main()
