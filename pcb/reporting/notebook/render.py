"""Run a notebook and export it: `render(study, target)`.

Every table and figure is rendered by notebooks/table.ipynb, unless notebooks/ has one of its own
name. The notebook runs under a temporary name, and its outputs take their places together, so a
failure leaves earlier pages as they were. A notebook that failed is kept under logs/.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from pygments.formatters.html import HtmlFormatter
from traitlets.config import Config

from pcb import formatting
from pcb.errors import UserError
from pcb.files import ROOT, atomic, temporary_folder, write_json, write_text
from pcb.import_stubs import blocked
from pcb.reporting import findings, protocols, style, tables
from pcb.reporting.current import page_from, record_page, template
from pcb.reporting.notebook import FOR_PAGE
from pcb.study import Study

with blocked("rfc3987_syntax"):  # see pcb/study/schema.py; nbformat imports jsonschema too
    import nbformat
    import papermill
    from nbconvert import HTMLExporter
    from nbformat import NotebookNode


def render(study: Study, target: str) -> Path:
    """Render one table, figure or page from its gathered file.

    Writes the notebook with its outputs, the HTML page, the first picture as PNG and, of a table,
    CSV, Markdown and LaTeX.

    Returns:
        The HTML page.

    Raises:
        UserError: The gathered file is missing or of another format, or the notebook failed.
    """
    paths, gathered = study.paths, study.paths.gathered(target)
    made_from = page_from(study, target)
    value = tables.load_json(gathered)  # an error names the file before a kernel starts
    failed = paths.log(f"notebook/{target}").with_suffix(".failed.ipynb")
    notebook = execute(ROOT / template(target), gathered, paths.notebook(target).parent, failed)

    if target in study.tables:
        table = tables.ResultTable.from_json(value)
        for suffix, form in tables.FORMS.items():
            write_text(paths.table(target, suffix), form(table))
    elif target in study.summaries:
        columns, lines = {
            "findings": (findings.COLUMNS, findings.lines),
            "protocols": (protocols.COLUMNS, protocols.lines),
        }[target]
        write_text(paths.table(target, "csv"), tables.csv_text(columns, lines(value)))
    # Pictures of a summary are in its page alone: the workflow declares no file of them.
    if target not in study.summaries and (image := picture(notebook)):
        with atomic(paths.figure(target)) as temporary:
            temporary.write_bytes(image)
    page = export(with_html(notebook), links(study, target))
    without_html(notebook)
    with atomic(paths.notebook(target)) as temporary:
        nbformat.write(notebook, temporary)
    write_text(paths.html(target), page)
    written = [paths.notebook(target), paths.html(target), paths.figure(target)]
    written += [path for _, path in tables_of(study, target)]
    record_page(study, target, written, made_from)
    failed.unlink(missing_ok=True)
    return paths.html(target)


def execute(path: Path, gathered: Path, folder: Path, failed: Path) -> NotebookNode:
    """Run a notebook in a fresh kernel of this interpreter and this checkout.

    Args:
        path: The notebook.
        gathered: File that its parameter `gathered` names.
        folder: Where it will lie and where it runs. The parameter is relative to it, so that the
            notebook names no local folder and runs again after the results were moved.
        failed: Where the partly executed notebook is written if a cell fails.

    Returns:
        The notebook with its outputs.

    Raises:
        UserError: A cell failed, or no kernel started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_folder() as private, private_jupyter(private):
        out = private / path.name
        try:
            papermill.execute_notebook(
                path,
                out,
                {"gathered": os.path.relpath(gathered.resolve(), folder.resolve())},
                kernel_name="python3",
                cwd=folder,
                progress_bar=False,
                start_timeout=120,
                config=local_sockets(str(private)),
            )
        except papermill.PapermillExecutionError as error:
            write_text(failed, out.read_text(encoding="utf-8"))
            raise UserError(
                f"{path.name}, cell {error.exec_count}, failed: {error.ename}: {error.evalue}",
                f"see the partly executed notebook: {failed}",
            ) from error
        except RuntimeError as error:
            raise UserError(
                f"no Jupyter kernel started for {path.name}: {error}",
                "check that ipykernel is installed and that memory is free, then run it again",
            ) from error
        notebook = nbformat.read(out, as_version=4)
    # Without times and temporary names, equal results give equal files.
    for node in (notebook, *notebook.cells):
        node.metadata.pop("papermill", None)
    return notebook


def local_sockets(folder: str) -> Config:
    """Let a kernel communicate through sockets in `folder`.

    Two kernels that start at once may choose the same TCP port. A socket's path has 107 characters
    at most, so a long folder keeps TCP.
    """
    if len(folder) > 90:
        return Config()
    return Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})


@contextmanager
def private_jupyter(folder: Path) -> Generator[None]:
    """Keep Jupyter's runtime files, IPython's profile and the kernel `python3` in `folder`.

    Parallel jobs then share no database, and the home folder is not written. A kernel of that name
    that the user has installed, perhaps of another interpreter, is not used.
    """
    kernel = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    write_json(folder / "jupyter/kernels/python3/kernel.json", kernel)
    code = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    wanted = {
        "JUPYTER_RUNTIME_DIR": f"{folder}/runtime",
        "IPYTHONDIR": f"{folder}/ipython",
        "JUPYTER_PATH": f"{folder}/jupyter",  # searched before the user's folders
        "PYTHONPATH": code,
    }
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value


def with_html(notebook: NotebookNode) -> NotebookNode:
    """A copy of a notebook that has HTML where there is any for the page, in place of images."""
    copy = deepcopy(notebook)
    for output in outputs(copy):
        if FOR_PAGE in output.get("data", {}):
            output["data"] = {"text/html": output["data"][FOR_PAGE]}
    return copy


def without_html(notebook: NotebookNode) -> None:
    """Remove the HTML that is only for the page from a notebook."""
    for output in outputs(notebook):
        output.get("data", {}).pop(FOR_PAGE, None)


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """The outputs of all cells."""
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def picture(notebook: NotebookNode) -> bytes | None:
    """The first PNG among a notebook's outputs."""
    for output in outputs(notebook):
        if image := output.get("data", {}).get("image/png"):
            return base64.b64decode(image)
    return None


def tables_of(study: Study, target: str) -> list[tuple[str, Path]]:
    """Format and path of the tables that a target is written to."""
    formats = tables.FORMS if target in study.tables else ("csv",)
    formats = () if target in study.pages else formats
    return [(suffix, study.paths.table(target, suffix)) for suffix in formats]


def links(study: Study, target: str) -> dict:
    """The links of a page: its files, and its own and its neighbours' sections in the index.

    The index always exists, even if other pages are not rendered. Links are relative, so that the
    folder can be moved.
    """
    paths, here = study.paths, study.paths.html(target).parent

    def to(path: Path) -> str:
        return os.path.relpath(path, here)

    order = list(study.targets)
    position = order.index(target)
    near = {
        side: {"href": f"{to(paths.index)}#{order[i]}", "name": formatting.number(order[i])}
        if 0 <= i < len(order)
        else None
        for side, i in (("before", position - 1), ("after", position + 1))
    }
    files = [("notebook", paths.notebook(target)), *tables_of(study, target)]
    return {
        "title": f"{formatting.number(target)} · {study.scale['name']}",
        "index": f"{to(paths.index)}#{target}",
        **near,
        "files": [{"href": to(path), "name": name} for name, path in files],
    }


def export(notebook: NotebookNode, page: dict) -> str:
    """A notebook as one HTML file that needs no network, the code folded at the end.

    `page` is what `links` returned.
    """
    exporter = HTMLExporter(template_name="notebook", extra_template_basedirs=[str(style.FOLDER)])
    page = {
        **page,
        "css": (style.FOLDER / "page.css").read_text(encoding="utf-8"),
        "light": HtmlFormatter(style="default").get_style_defs(".highlight"),
        "dark": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }
    return exporter.from_notebook_node(notebook, resources={"page": page})[0]
