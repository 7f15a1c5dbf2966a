"""The notebooks: one for each table and figure, committed clean, running on whatever has been measured, rendered by papermill."""

import ast
import html
import re
from pathlib import Path

import nbformat
import pytest
from test_report import fabricate, study_in

from pcb.errors import UserError
from pcb.reporting import plots
from pcb.reporting.gather import gather
from pcb.reporting.notebook import render as rendering
from pcb.reporting.notebook.render import render
from pcb.study import load_study

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_target_has_a_notebook_and_every_notebook_a_target():
    assert {path.stem for path in NOTEBOOKS} == set(load_study("mini").targets)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_clean_and_has_one_parameters_cell(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    parameters = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1
    suffix = "csv" if path.stem in load_study("mini").tables else "json"
    assert parameters[0].source.startswith(
        f'gathered = "results/mini/gathered/{path.stem}.{suffix}"'
    )


def shown(path, gathered):
    """What the notebook's cells show, run in this process: the value of each cell's last expression."""
    names, out = {}, []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        if "parameters" in cell.metadata.get("tags", []):
            names["gathered"] = str(gathered)
            continue
        *before, last = ast.parse(cell.source).body
        exec(compile(ast.Module(before, []), path.name, "exec"), names)
        out.append(eval(compile(ast.Expression(last.value), path.name, "eval"), names))
    return out


@pytest.mark.parametrize("measured", ["nothing", "half", "all"])
def test_every_notebook_runs_whatever_was_measured(tmp_path, measured, monkeypatch):
    monkeypatch.setattr(plots, "DPI", 30)
    study = study_in(tmp_path, seeds=(0, 1))
    runs = {"nothing": [], "half": study.runs()[::2], "all": study.runs()}[measured]
    for run in runs:
        fabricate(study, run, 0, AP=40.0)
        fabricate(study, run, 1, AP=42.0)
    for path in (path for path in NOTEBOOKS if path.stem in study.tables):
        pieces = shown(path, gather(study, path.stem))
        text = " ".join(piece.html for piece in pieces if hasattr(piece, "html"))
        pictures = [piece for piece in pieces if hasattr(piece, "png")]
        assert study.tables[path.stem].title.split(",")[0] in html.unescape(
            re.sub("<[^>]+>", "", text)
        )
        assert measured == "all" or all(
            picture.png().startswith(b"\x89PNG") for picture in pictures
        )  # drawing them twice is enough
        assert pictures or (path.stem == "figure1" and measured == "nothing")
        ours = text.replace("paper: not run", "")  # claims on numbers that the paper does not print
        assert ("not run" in ours) == (not set(study.runs(path.stem)) <= set(runs))


def test_notebooks_of_pictures_run_without_any_result(tmp_path):
    study = study_in(tmp_path)
    for name in study.pages:
        pieces = shown(ROOT / f"notebooks/{name}.ipynb", gather(study, name))
        assert any("not run" in piece.html for piece in pieces if hasattr(piece, "html"))
        assert all(piece.png().startswith(b"\x89PNG") for piece in pieces if hasattr(piece, "png"))


def test_papermill_renders_a_page_that_needs_no_network(tmp_path):
    study = study_in(tmp_path)
    for row in study.tables["table05"].rows:
        fabricate(study, row.run, AP=61.25)
    gather(study, "table05")
    page = render(study, "table05").read_text()
    assert "61.2" in page and "27.6" in page and "Compare directions" in page
    assert not re.search(r"(src|href)=\"(https?:)?//", page) and "<script" not in page
    assert (
        str(tmp_path)
        not in nbformat.read(study.paths.notebook("table05"), as_version=4)
        .metadata.get("papermill", {})
        .values()
    )
    assert study.paths.figure("table05").read_bytes().startswith(b"\x89PNG")
    assert all(
        study.paths.table("table05", suffix).stat().st_size for suffix in ("csv", "md", "tex")
    )


def test_a_notebook_that_fails_is_kept_and_leaves_the_earlier_page(tmp_path, monkeypatch):
    study = study_in(tmp_path / "results")
    gather(study, "table05")
    earlier = study.paths.html("table05")
    earlier.parent.mkdir(parents=True)
    earlier.write_text("as it was")
    broken = nbformat.read(ROOT / "notebooks/table05.ipynb", as_version=4)
    broken.cells[-1].source = "1 / 0"
    (tmp_path / "notebooks").mkdir()
    nbformat.write(broken, tmp_path / "notebooks/table05.ipynb")
    monkeypatch.setattr(rendering, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(UserError, match="ZeroDivisionError") as caught:
        render(study, "table05")
    kept = study.paths.root / "logs/notebook/table05.failed.ipynb"
    assert str(kept) in caught.value.fix and "ZeroDivisionError" in kept.read_text()
    assert earlier.read_text() == "as it was" and not study.paths.notebook("table05").exists()
