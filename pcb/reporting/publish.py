"""A small copy of a results folder, to commit or to send: `publish(study, destination)`.

It copies the site and adds a README.md: tables (CSV, Markdown, LaTeX), rendered notebooks, every
metric, the provenance of every run and all verdicts. It has no weights, no detections, and only the
images that a page shows. It names no path of any machine: the results folder is written as
`results/<scale>`, and a file that names another local folder is an error.

`published.json` lists the files of a copy with their digests. A later call replaces and deletes
only these: all else in the folder, such as `.git`, CNAME or notes, stays as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from pcb.errors import UserError
from pcb.files import ROOT, atomic, sha256, temporary_folder
from pcb.formatting import number
from pcb.reporting.captions import warning
from pcb.reporting.gather import collect, outdated, provenance, scale_about
from pcb.reporting.results import Results
from pcb.reporting.site.build import build, link, progress
from pcb.reporting.site.data import runs
from pcb.reporting.tables import load_json
from pcb.reporting.verdict import markdown, of_published
from pcb.study import Study
from pcb.study.records import read_record, write_record

TEXT = {".html", ".ipynb", ".json", ".csv", ".md", ".tex"}
LIST = "published.json"
# First folders of an absolute path, beside those of this machine.
TOP_FOLDERS = (
    "Users Volumes cluster data etc home lustre media mnt net nfs opt private proc project "
    "projects root scratch srv tmp usr var work"
)


def publish(study: Study, destination: str | Path) -> Path:
    """Build the site and copy it to `destination`, in place of an earlier copy.

    Returns:
        The index of the copy.

    Raises:
        UserError: `destination` is a folder of something else, a file of the copy was edited there,
            pages show other numbers than the metrics, or a local path would be published. Nothing
            has been changed there.
    """
    destination = Path(destination).expanduser()
    refuse_places(study, destination)
    before = listed(destination)
    build(study)
    refuse_mixture(study)
    with temporary_folder() as folder:
        copy = folder / "site"
        shutil.copytree(study.paths.site, copy, ignore=shutil.ignore_patterns(".*"))
        (copy / "README.md").write_text(contents(study), encoding="utf-8")
        for path in sorted(copy.rglob("*")):
            if path.suffix in TEXT:
                name = destination / path.relative_to(copy)
                text = cleaned(path.read_text(encoding="utf-8"), study, name)
                path.write_text(text, encoding="utf-8")
        files = {
            path.relative_to(copy).as_posix(): [sha256(path)]
            for path in sorted(copy.rglob("*"))
            if path.is_file()
        }
        refuse_edited(destination, before, files)
        try:
            replace(copy, destination, before, files)
        except OSError as error:
            raise UserError(
                f"{destination} could not be written: {error.strerror}", "name another folder"
            ) from error
    return destination / study.paths.index.relative_to(study.paths.site)


def refuse_places(study: Study, destination: Path) -> None:
    """Raise `UserError` where a copy must not be made: around or inside something else."""
    fix = "name a folder that does not exist yet, or an earlier copy"
    try:
        place, results = destination.resolve(), study.paths.root.resolve()
        kept = (Path.cwd(), Path.home(), ROOT)
        if any(path.is_symlink() for path in (destination, destination / LIST)):
            raise UserError(f"{destination} is a symbolic link, or its {LIST} is", fix)
        if place == Path(place.anchor) or any(path.is_relative_to(place) for path in kept):
            raise UserError(
                f"{destination} is, or holds, the home folder, the repository or the working "
                "directory",
                fix,
            )
        if place.is_relative_to(results) or results.is_relative_to(place):
            raise UserError(f"{destination} overlaps the results folder {study.paths.root}", fix)
        if destination.exists() and not destination.is_dir():
            raise UserError(f"{destination} is not a folder", fix)
        own = (destination / LIST).is_file()
        if (destination / ".git").exists() and not own:
            raise UserError(
                f"{destination} is the root of a repository",
                f"name a folder inside it that does not exist yet: {destination / 'site'}",
            )
        if not own and destination.is_dir() and any(destination.iterdir()):
            old = (destination / "index.html", destination / "data/runs.json")
            if not all(path.is_file() for path in old):
                raise UserError(f"{destination} exists and is not a published site", fix)
    except OSError as error:
        raise UserError(f"{destination}: {error.strerror}", fix) from error


def listed(destination: Path) -> dict[str, list[str]]:
    """The files that an earlier copy consists of: name -> digests that it may have.

    A copy made before 0.1.0 has no list: what has the name of a file of a copy is part of it.
    """
    path, fix = destination / LIST, "restore it, or name another folder"
    record = read_record(path, fix)
    if record is not None:
        names = map(Path, record["files"])
        if any(name.is_absolute() or ".." in name.parts for name in names):
            raise UserError(f"{path} names files outside its folder", fix)
        return record["files"]
    if path.exists():
        raise UserError(f"{path} was not written by `pcb publish`", fix)
    if not destination.is_dir():
        return {}
    names = ["README.md", "index.html"]
    folders = [destination / name for name in ("data", "figures", "notebooks", "tables")]
    paths = [destination / name for name in names if (destination / name).is_file()]
    paths += [path for folder in folders for path in folder.glob("*") if path.is_file()]
    return {path.relative_to(destination).as_posix(): [sha256(path)] for path in paths}


def refuse_mixture(study: Study) -> None:
    """Raise `UserError` where a rendered page shows other results than there are now."""
    results, old = Results(study), []
    for target in study.tables:
        if study.paths.html(target).exists() and outdated(study, collect(results, target)):
            old.append(target)
    for name, page in study.pages.items():
        gathered = study.paths.gathered(name)
        if study.paths.html(name).exists() and gathered.exists():
            shown = load_json(gathered)["runs"]
            if shown != provenance(results, page, [study.seeds[0]]):
                old.append(name)
    if old:
        raise UserError(
            f"these pages show other results than there are now: {', '.join(old)}",
            f"run `snakemake --cores all {' '.join(old)}`",
        )


def refuse_edited(
    destination: Path, before: dict[str, list[str]], files: dict[str, list[str]]
) -> None:
    """Raise `UserError` where a file that would be replaced or deleted is not of a copy."""
    for name in sorted({*before, *files}):
        path = destination / name
        parents = [destination / parent for parent in Path(name).parents]
        if path.is_symlink() or any(parent.is_symlink() for parent in parents):
            raise UserError(f"{path} lies behind a symbolic link", "delete the link")
        if path.exists() and not (path.is_file() and sha256(path) in before.get(name, [])):
            raise UserError(
                f"{path} was not written by `pcb publish`, or was edited since",
                "move it away, or delete it",
            )


def replace(
    copy: Path, destination: Path, before: dict[str, list[str]], files: dict[str, list[str]]
) -> None:
    """Put the files of a new copy in place of those of an earlier one.

    The list is written first with both states of each file, so that a call that was cut off can be
    repeated.
    """
    names = {*before, *files}
    both = {name: [*before.get(name, []), *files.get(name, [])] for name in sorted(names)}
    write_record(destination / LIST, {"files": both})
    for name in files:
        with atomic(destination / name, durable=False) as temporary:
            temporary.write_bytes((copy / name).read_bytes())
    for name in before.keys() - files.keys():
        path = destination / name
        path.unlink(missing_ok=True)
        if path.parent != destination and path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()
    write_record(destination / LIST, {"files": files})


def contents(study: Study) -> str:
    """The README.md: for those who browse the repository, which shows Markdown but not HTML."""
    results = Results(study)
    state, seeds = progress(runs(results)), ", ".join(map(str, study.seeds))
    paragraphs = [
        f"# Results on {study.scale['title']}",
        f"{state['measured']} of {state['all']} trainings measured; seeds: {seeds}.",
        warning(scale_about(results, study.runs())),
        markdown(of_published(study, study.paths.site)),
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


def cleaned(text: str, study: Study, path: Path) -> str:
    """Replace paths of this machine by paths relative to the checkout.

    Args:
        text: The content of a file.
        study: Its study, for the results folder.
        path: The file, for the error.

    Raises:
        UserError: The text names another folder of this or another machine.
    """
    root = study.paths.root
    for folder in (root.resolve(), root):
        if folder.is_absolute():
            text = text.replace(f"{folder}/", f"results/{root.name}/")
    text = text.replace(f"{ROOT}/", "")
    if match := LOCAL_PATH.search(text):
        raise UserError(
            f"{path} would name {match[0]}, a path of a machine",
            f"delete {study.paths.site} and run `snakemake --cores all`: it renders every page "
            "again; if the name comes from the scale's YAML, use a relative path there",
        )
    return text


def _local_path() -> re.Pattern[str]:
    """A pattern of absolute paths on this machine, and of usual ones on others."""
    here = [name for name in os.listdir("/") if os.path.isdir(f"/{name}")]
    tops = "|".join(map(re.escape, sorted({*here, *TOP_FOLDERS.split()})))
    # The characters before it rule out the inside of a base64 string, of a URL and of a word.
    folders = [str(folder) for folder in (Path.home(), Path(tempfile.gettempdir()), ROOT)]
    whole = "|".join(re.escape(folder) for folder in folders if len(folder) > 1)
    return re.compile(rf"(?<![\w+/=.])(?:(?:{whole})/|/(?:{tops})/|[A-Z]:\\\\?Users\\\\?)[\w.-]+")


LOCAL_PATH = _local_path()


def size(folder: Path) -> int:
    """Bytes of the files of a copy."""
    return sum((folder / name).stat().st_size for name in listed(folder))
