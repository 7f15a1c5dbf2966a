"""A small copy of a results folder, to commit or to send: `publish(study, destination)`.

It copies the site and adds a README.md: tables (CSV, Markdown, LaTeX), rendered notebooks, every
metric, the provenance of every run and all verdicts. It has no weights, no detections, and only the
images that a page shows. It names no path of this machine: the results folder is written as
`results/<scale>`, and a file that still names a local folder is an error.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.formatting import number
from pcb.reporting.captions import warning
from pcb.reporting.gather import scale_about
from pcb.reporting.results import Results
from pcb.reporting.site.build import build, link, progress
from pcb.reporting.site.data import runs
from pcb.study import Study

TEXT = {".html", ".ipynb", ".json", ".csv", ".md", ".tex"}


def publish(study: Study, destination: str | Path) -> Path:
    """Build the site and copy it to `destination`, in place of an earlier copy.

    Returns:
        The index of the copy.

    Raises:
        UserError: `destination` has other content, or a path of this machine would be published.
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
    """The README.md: for those who browse the repository, which shows Markdown but not HTML."""
    results = Results(study)
    state, seeds = progress(runs(results)), ", ".join(map(str, study.seeds))
    paragraphs = [
        f"# Results on {study.scale['title']}",
        f"{state['measured']} of {state['all']} trainings measured; seeds: {seeds}.",
        warning(scale_about(results, study.runs())),
        "Open `index.html` in a browser: every number there leads to the run that it comes from. "
        "Written by `pcb publish`.",
    ]
    lines = []
    for target in study.targets.values():
        files = {
            "table": study.paths.table(target.id, "md"),
            "notebook": study.paths.notebook(target.id),
        }
        rendered = [f"[{name}]({href})" for name, p in files.items() if (href := link(study, p))]
        links = " · ".join(rendered) or "not rendered"
        lines.append(f"- {number(target.id)}. {target.title}: {links}")
    return "\n\n".join(p for p in [*paragraphs, "\n".join(lines)] if p) + "\n"


def is_copy(study: Study, folder: Path) -> bool:
    """Whether a folder is empty or holds an earlier copy, so that it may be replaced."""
    paths = study.paths
    needed = [path.relative_to(paths.site) for path in (paths.index, paths.download("runs.json"))]
    return folder.is_dir() and (
        not any(folder.iterdir()) or all((folder / path).is_file() for path in needed)
    )


def cleaned(text: str, study: Study, path: Path) -> str:
    """Replace paths of this machine by paths relative to the checkout.

    Args:
        text: The content of a file.
        study: Its study, for the results folder.
        path: The file, for the error.

    Raises:
        UserError: The text names another folder of this machine.
    """
    root = study.paths.root
    for folder in (root.resolve(), root):
        if folder.is_absolute():
            text = text.replace(f"{folder}/", f"results/{root.name}/")
    text = text.replace(f"{ROOT}/", "")
    for folder in (ROOT, Path.home(), Path(tempfile.gettempdir())):
        # The characters before it rule out the inside of a base64 string.
        if match := re.search(rf"(?<![\w+/=.]){re.escape(str(folder))}/[\w.-]+", text):
            raise UserError(
                f"{path} would name {match[0]}, a path of this machine",
                "render that page again from this checkout",
            )
    return text


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
