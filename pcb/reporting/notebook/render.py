"""A notebook run and exported: `render(study, target)` writes notebook, HTML, the figure, and of a table CSV, Markdown and LaTeX.

The notebook runs under a temporary name and takes its place only when all of it is done, so a failure leaves earlier pages as they were.
The notebook that failed is kept under `logs/` with its traceback.
"""

from __future__ import annotations

import base64
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from pcb import formatting
from pcb.errors import UserError
from pcb.files import ROOT, atomic, write_text
from pcb.reporting import album, style, tables
from pcb.study import Study

FORMS = {"csv": tables.csv, "md": tables.markdown, "tex": tables.latex}


def render(study: Study, target: str) -> Path:
    """Render one table, figure or page from what was gathered; returns the HTML's path. Raises `UserError` naming a failed notebook."""
    paths = study.paths
    source = ROOT / "notebooks" / f"{target}.ipynb"
    if target not in study.targets or not source.exists():
        raise UserError(
            f"no notebook renders {target!r}: {source} does not exist",
            f"choose one of: {', '.join(study.targets)}",
        )
    if target in study.tables:
        gathered = tables.load(paths.gathered(target).resolve())
    else:
        gathered = album.load(paths.gathered(target, "json").resolve())
    failed = paths.log(f"notebook/{target}").with_suffix(".failed.ipynb")
    notebook = execute(source, gathered.path, failed)

    if target in study.tables:
        for suffix, form in FORMS.items():
            write_text(paths.table(target, suffix), form(gathered))
    if image := picture(notebook):
        with atomic(paths.figure(target)) as temporary:
            temporary.write_bytes(image)
    page = export(notebook, links(study, target))
    with atomic(paths.notebook(target)) as temporary:
        import nbformat

        nbformat.write(notebook, temporary)
    write_text(paths.html(target), page)
    failed.unlink(missing_ok=True)
    return paths.html(target)


def execute(source: Path, gathered: Path, failed: Path):
    """Run the notebook on a gathered CSV in a fresh kernel of this interpreter; returns it with its outputs.

    On an error the notebook so far is kept at `failed`, and `UserError` names it.
    """
    import nbformat
    import papermill

    with tempfile.TemporaryDirectory(prefix="pcb-") as folder, private_jupyter(folder):
        out = Path(folder) / source.name
        try:
            papermill.execute_notebook(
                source,
                out,
                {"gathered": relative(gathered)},
                kernel_name="python3",
                cwd=ROOT,
                progress_bar=False,
                start_timeout=120,
                config=local_sockets(folder),
            )
        except papermill.PapermillExecutionError as error:
            write_text(failed, out.read_text())
            raise UserError(
                f"{source.name}, cell {error.exec_count}, failed: {error.ename}: {error.evalue}",
                f"see the notebook as far as it ran: {failed}",
            ) from error
        except RuntimeError as error:
            raise UserError(
                f"no Jupyter kernel started for {source.name}: {error}",
                "see that ipykernel is installed and that memory is free, then run it again",
            ) from error
        notebook = nbformat.read(out, as_version=4)
    for part in (
        notebook,
        *notebook.cells,
    ):  # times and temporary names: equal results shall give equal files
        part.metadata.pop("papermill", None)
    return notebook


def relative(path: Path) -> str:
    """The path from the repository's root, where the kernel starts, so that a page names no folder of this machine."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def local_sockets(folder: str):
    """Settings for a kernel that talks through files in `folder`: two kernels that start at once may pick the same TCP port."""
    from traitlets.config import Config

    too_long = len(folder) > 90  # a socket's path has 107 characters at most
    return (
        Config()
        if too_long
        else Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
    )


@contextmanager
def private_jupyter(folder: str):
    """Runtime files and IPython's profile in a folder of our own, so that parallel jobs share no database and no home is written."""
    wanted = {"JUPYTER_RUNTIME_DIR": f"{folder}/runtime", "IPYTHONDIR": f"{folder}/ipython"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


def picture(notebook) -> bytes | None:
    """The first PNG that the notebook shows."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if image := output.get("data", {}).get("image/png"):
                return base64.b64decode(image)
    return None


def links(study: Study, target: str) -> dict:
    """What the page links to: its own files, its own and its neighbours' places in the index, which is there whatever else has been
    rendered. Relative, so that a folder can be moved."""
    paths, here = study.paths, study.paths.html(target).parent

    def to(path: Path) -> str:
        return os.path.relpath(path, here)

    order = [t for t in study.targets if (ROOT / "notebooks" / f"{t}.ipynb").exists()]
    at = order.index(target)
    near = {
        side: {"href": f"{to(paths.index)}#{order[i]}", "name": formatting.number(order[i])}
        if 0 <= i < len(order)
        else None
        for side, i in (("before", at - 1), ("after", at + 1))
    }
    return {
        "title": f"{formatting.number(target)} · {study.scale['name']}",
        "index": f"{to(paths.index)}#{target}",
        **near,
        "files": [
            {"href": to(path), "name": name}
            for name, path in (
                ("notebook", paths.notebook(target)),
                *((s, paths.table(target, s)) for s in FORMS if target in study.tables),
            )
        ],
    }


def export(notebook, page: dict) -> str:
    """The notebook as one HTML file that needs no network: results first, the code folded at the end."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    exporter = HTMLExporter(template_name="notebook", extra_template_basedirs=[str(style.FOLDER)])
    page = {
        **page,
        "css": (style.FOLDER / "page.css").read_text(),
        "light": HtmlFormatter(style="default").get_style_defs(".highlight"),
        "dark": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }
    return exporter.from_notebook_node(notebook, resources={"page": page})[0]
