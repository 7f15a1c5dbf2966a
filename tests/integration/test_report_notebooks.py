"""Notebooks: committed without outputs, they run on any results and render with papermill."""

import ast
import html
import re

import nbformat
import pytest
import yaml
from fabricate import SOFTMAX, fabricate, study_in

from pcb.errors import UserError
from pcb.files import ROOT, write_json
from pcb.reporting.current import template
from pcb.reporting.gather import gather
from pcb.reporting.notebook import render as rendering
from pcb.reporting.notebook.render import render
from pcb.study import load_study

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_target_has_a_notebook_and_every_notebook_a_target():
    used = {ROOT / template(target) for target in load_study("mini").targets}
    assert used == set(NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_has_no_outputs_and_one_parameters_cell(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    target = re.search(r'gathered = "results/mini/gathered/(\w+)\.json"', parameters.source)[1]
    assert target in load_study("mini").targets and template(target).name == path.name


def outputs(path, gathered):
    """What a notebook's cells display, run in this process."""
    out = []
    names = {"display": out.append}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        if "parameters" in cell.metadata.get("tags", []):
            names["gathered"] = str(gathered)
            continue
        body = ast.parse(cell.source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), path.name, "exec"), names)
        if last:
            out.append(eval(compile(ast.Expression(last.value), path.name, "eval"), names))
    return out


@pytest.mark.parametrize("measured", ["nothing", "half", "all"])
def test_every_notebook_of_a_table_runs_with_any_measurements(tmp_path, measured, monkeypatch):
    monkeypatch.setattr("pcb.reporting.plots.parts.DPI", 30)
    study = study_in(tmp_path, seeds=(0, 1))
    runs = {"nothing": [], "half": study.runs()[::2], "all": study.runs()}[measured]
    for run in runs:
        fabricate(study, run, 0, AP=40.0)
        fabricate(study, run, 1, AP=42.0)
    for target, table in study.tables.items():
        pieces = outputs(ROOT / template(target), gather(study, target))
        text = " ".join(piece.html for piece in pieces if hasattr(piece, "html"))
        pictures = [piece for piece in pieces if hasattr(piece, "png")]
        assert table.title.split(",")[0] in html.unescape(re.sub("<[^>]+>", "", text))
        if measured != "all":  # drawing them twice is enough
            assert all(picture.png().startswith(b"\x89PNG") for picture in pictures)
        drawn = 1 if target == "figure1" else len(table.plots)
        assert len(pictures) == (0 if target == "figure1" and not runs else drawn)
        ours = text.replace("paper: not run", "")  # claims on numbers that the paper does not print
        assert ("not run" in ours) == (not set(study.runs(target)) <= set(runs))


def test_notebooks_of_images_run_without_any_result(tmp_path):
    study = study_in(tmp_path)
    for name in (*study.pages, *study.summaries):
        pieces = outputs(ROOT / f"notebooks/{name}.ipynb", gather(study, name))
        assert any("not run" in piece.html for piece in pieces if hasattr(piece, "html"))
        assert all(piece.png().startswith(b"\x89PNG") for piece in pieces if hasattr(piece, "png"))


def test_a_kernel_that_the_user_installed_is_not_used(tmp_path, monkeypatch):
    spec = tmp_path / "jupyter/kernels/python3/kernel.json"
    write_json(spec, {"argv": ["false"], "display_name": "mine", "language": "python"})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    study = study_in(tmp_path)
    gather(study, "table05")
    assert "<h1>Table 5</h1>" in render(study, "table05").read_text(encoding="utf-8")


def test_papermill_renders_a_page_that_needs_no_network(tmp_path):
    study = study_in(tmp_path)
    for row in study.tables["table05"].rows:
        fabricate(study, row.run, AP=61.25)
    gather(study, "table05")
    page = render(study, "table05").read_text()
    assert "<h1>Table 5</h1>" in page and "Table 5 · mini" in page
    assert "61.2" in page and "27.6" in page and "Compare directions" in page
    assert not re.search(r"(src|href)=\"(https?:)?//", page) and "<script" not in page
    notebook = nbformat.read(study.paths.notebook("table05"), as_version=4)
    assert "papermill" not in notebook.metadata
    assert study.paths.figure("table05").read_bytes().startswith(b"\x89PNG")
    for suffix in ("csv", "md", "tex"):
        assert study.paths.table("table05", suffix).stat().st_size


def test_a_table_of_one_s_own_study_needs_no_notebook(tmp_path):
    row = {"id": "softmax", "labels": ["Softmax"], "run": SOFTMAX}
    table = {"title": "Mine", "claim": "none", "labels": ["Method"], "columns": ["AP", "PwB"]}
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(yaml.safe_dump({"tables": {"table12": {**table, "rows": [row]}}}))
    study = load_study("mini", overlay, {"results": str(tmp_path), "seeds": [0]})
    fabricate(study, SOFTMAX, AP=33.25)
    pieces = outputs(ROOT / template("table12"), gather(study, "table12"))
    text = " ".join(piece.html for piece in pieces if hasattr(piece, "html"))
    assert "<h1>Table 12</h1>" in text and "33.2" in text
    assert any(hasattr(piece, "png") for piece in pieces)


def test_a_notebook_that_fails_is_kept_and_leaves_the_earlier_page(tmp_path, monkeypatch):
    study = study_in(tmp_path / "results")
    gather(study, "table05")
    earlier = study.paths.html("table05")
    earlier.parent.mkdir(parents=True)
    earlier.write_text("as it was")
    broken = nbformat.read(ROOT / "notebooks/table.ipynb", as_version=4)
    broken.cells[-1].source = "1 / 0"
    (tmp_path / "notebooks").mkdir()
    nbformat.write(broken, tmp_path / "notebooks/table.ipynb")
    monkeypatch.setattr(rendering, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(UserError, match="ZeroDivisionError") as caught:
        render(study, "table05")
    kept = study.paths.root / "logs/notebook/table05.failed.ipynb"
    assert str(kept) in caught.value.fix and "ZeroDivisionError" in kept.read_text()
    assert earlier.read_text() == "as it was" and not study.paths.notebook("table05").exists()
