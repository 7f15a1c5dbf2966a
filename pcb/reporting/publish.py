"""A results folder in small, to commit or to send: `publish(study, destination)` copies the site, and adds a README.md.

The site holds the tables (CSV, Markdown, LaTeX), the rendered notebooks, every metric, every run's provenance and all verdicts. No
weights, no detections, no images but those that a page shows. No path of this machine either: what the pages say of the results
folder is written as `results/<scale>`, and a file that still names a folder of this machine ends it with an error.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.formatting import number
from pcb.reporting.captions import scale_facts, warning
from pcb.reporting.gather import read_metrics
from pcb.reporting.site.build import build, existing, progress
from pcb.reporting.site.data import runs
from pcb.study import Study

TEXT = {".html", ".ipynb", ".json", ".csv", ".md", ".tex"}


def publish(study: Study, destination: str | Path) -> Path:
    """Build the site and copy it to `destination`, in the place of an earlier copy; returns the copy's index.

    Raises `UserError` where `destination` is a folder of something else, or where a path of this machine would be published.
    """
    destination = Path(destination)
    if destination.exists() and not is_copy(study, destination):
        raise UserError(
            f"{destination} exists and is not a published site",
            "name a folder that does not exist yet",
        )
    build(study)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=destination.parent, prefix=f".{destination.name}-"
    ) as folder:
        copy = Path(folder) / "site"
        shutil.copytree(study.paths.site, copy, ignore=shutil.ignore_patterns(".*"))
        for path in sorted(copy.rglob("*")):
            if path.suffix in TEXT:
                path.write_text(
                    cleaned(path.read_text(), study, destination / path.relative_to(copy))
                )
        (copy / "README.md").write_text(contents(study))
        if destination.exists():
            shutil.rmtree(destination)
        copy.rename(destination)
    return destination / study.paths.index.relative_to(study.paths.site)


def contents(study: Study) -> str:
    """A page for those who browse the repository, where Markdown and notebooks show but HTML does not."""
    found = {
        (run, seed): read_metrics(study, run, seed) for run in study.runs() for seed in study.seeds
    }
    scale = scale_facts(study.scale, study.scale["backbones"])
    far, seeds = progress(runs(study, found)), ", ".join(map(str, study.seeds))
    lines = [
        f"# Results on {study.scale['title']}",
        "",
        f"{far['measured']} of {far['all']} trainings measured; seeds: {seeds}.",
        warning({"comparable": not study.scale.get("synthetic"), "scale": scale}),
        "",
        "Open `index.html` in a browser: every number there leads to the run that it comes from. Written by `pcb publish`.",
        "",
    ]
    for target in study.targets.values():
        table, notebook = (
            existing(study, path)
            for path in (study.paths.table(target.id, "md"), study.paths.notebook(target.id))
        )
        links = " · ".join(
            f"[{name}]({href})" for name, href in (("table", table), ("notebook", notebook)) if href
        )
        lines.append(f"- {number(target.id)}. {target.title}: {links or 'not rendered'}")
    return "\n".join(lines) + "\n"


def is_copy(study: Study, folder: Path) -> bool:
    """Whether a folder is empty or holds an earlier copy, so that it may be replaced."""
    paths = study.paths
    needed = [path.relative_to(paths.site) for path in (paths.index, paths.download("runs.json"))]
    return folder.is_dir() and (
        not any(folder.iterdir()) or all((folder / path).is_file() for path in needed)
    )


def cleaned(text: str, study: Study, name: Path) -> str:
    """`text` with the results folder and the checkout named as seen from the checkout. `name` is the file's, for the error."""
    root = study.paths.root
    for folder, said in (
        (root.resolve(), f"results/{root.name}"),
        (root, f"results/{root.name}"),
        (ROOT, None),
    ):
        if folder.is_absolute():
            text = text.replace(f"{folder}/", f"{said}/" if said else "")
    for folder in (ROOT, Path.home(), Path(tempfile.gettempdir())):
        if found := re.search(
            rf"(?<![\w+/=.]){re.escape(str(folder))}/[\w.-]+", text
        ):  # not inside base64
            raise UserError(
                f"{name} would name {found[0]}, a path of this machine",
                "render that page again from this checkout",
            )
    return text


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
