"""Print the statistics of generated federated labels beside those of LVIS, as in docs/data.md.

python tools/federated_table.py results/mini/data/v05/val.json results/mini/data/v1/val.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pcb.data.lvis.federated import LVIS_SAMPLE, federated_statistics
from pcb.data.lvis.index import LVISIndex
from pcb.synthetic.generate import clusters


def rows(statistics: dict) -> dict[str, str]:
    """Put the statistics of one file into words, in the order of the table."""
    shares = ", ".join(f"{100 * share:.3g}" for share in statistics["negative_share"].values())
    return {
        "images": f"{statistics['images']}",
        "classes": f"{statistics['classes']:,}",
        "classes shown, an image": f"{statistics['present']:.2f}",
        "negative categories, an image": f"{statistics['negative']:.2f}",
        "their standard deviation": f"{statistics['negative_deviation']:.1f}",
        "look-alikes among them": f"{100 * statistics['lookalikes']:.1f} %",
        "images of which a rare, common, frequent class is a negative category": f"{shares} %",
        "negative images for one that shows the class": (
            f"{statistics['negative'] / statistics['present']:.1f}"
        ),
        "not exhaustive, an image": f"{statistics['not_exhaustive']:.2f}",
        "not exhaustive, of classes shown": (
            f"{100 * statistics['not_exhaustive'] / statistics['present']:.1f} %"
        ),
    }


def main(paths: list[str]) -> None:
    """Print one column for LVIS and one for each annotation file."""
    columns = {"LVIS v0.5 val, sample": rows(LVIS_SAMPLE)}
    for path in paths:
        index = LVISIndex(path)
        cluster = clusters(180 if len(index.classes) == 180 else 60)
        columns[f"{Path(path).parent.name}, {Path(path).stem}"] = rows(
            federated_statistics(index, cluster)
        )
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for label in next(iter(columns.values())):
        print(f"| {label} | " + " | ".join(column[label] for column in columns.values()) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Generated federated labels beside LVIS's.")
    parser.add_argument("files", nargs="+", metavar="JSON", help="annotation file of emoji-LVIS")
    main(parser.parse_args().files)
