"""Pages of own data, and of a scale that lacks a data set of the paper."""

from __future__ import annotations

import copy

import pytest
from fabricate import fabricate, study_in
from own_data import own_dataset, own_scale

from pcb.planning.jobs import jobs
from pcb.planning.workload import images_in
from pcb.reporting import captions, plots, tables, verdict
from pcb.reporting.gather import collect, collect_summary
from pcb.reporting.results import Results
from pcb.reporting.site.build import build
from pcb.study import Study, load_study

PLAIN = "mine_r50_rfs_softmax_plain"
FULL = "mine_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"


@pytest.fixture
def own(tmp_path):
    """A study of one method on own data; some class of each group but the frequent ones."""
    path = own_scale(tmp_path / "own.yaml", own_dataset(tmp_path), methods=["rfs"])
    study = load_study(path)
    fabricate(study, PLAIN, APf=None, AP=20.0)
    fabricate(study, FULL, APf=None, AP=22.0)
    return study


def without(study: Study, dataset: str) -> Study:
    """The study at a scale without one of its data sets."""
    resolved = copy.deepcopy(study.resolved)
    del resolved["scale"]["datasets"][dataset]
    return Study(resolved)


def test_own_data_are_named_and_stand_alone(own):
    table = collect(Results(own), "table02")
    assert table.blocks == [tables.OURS, tables.GAIN]
    for text in (tables.html(table), tables.markdown(table), tables.latex(table)):
        assert "My shapes" in text and "v0.5" not in text and "published" not in text
    assert "paper" not in tables.csv(table).splitlines()[0]
    assert "scored by COCO's rule" in " ".join(captions.statements(table.about))
    assert captions.warning(table.about) == ""
    data = dict(captions.caption(table.about))["Data"]
    assert data.startswith("My shapes, in COCO's format: 24 val images, 12 classes")
    assert "Departures: Data" not in dict(captions.caption(table.about))


def test_a_group_without_classes_is_a_dash_and_plots_are_drawn(own):
    table = collect(Results(own), "table02")
    cells = {(c.block, c.column): c.text for c in tables.grid(table)[1]}
    assert cells[tables.OURS, "APf"] == tables.NO_VALUE and cells[tables.OURS, "AP"] == "22.0"
    for target in own.tables:
        if not target.startswith("figure"):
            assert list(plots.draw(collect(Results(own), target)))


def test_the_number_of_rows_that_are_not_in_the_scale_is_told(own):
    table = collect(Results(own), "table02")
    assert [row.id for row in table.rows] == ["mine-rfs", "mine-rfs-pcb"]
    assert table.left_out == 14
    assert any("14 of the paper's rows" in note for note in tables.footnotes(table))


def test_the_site_of_own_data_judges_no_claim_of_the_paper(own):
    found = verdict.of_results(Results(own), [])
    assert not any("reproduce" in line["question"] for line in found["lines"])
    (basis,) = (line for line in found["lines"] if line["question"].startswith("On which data"))
    assert basis["answer"] == "My shapes, scored by COCO's rule." and "LVIS" not in basis["text"]
    page = build(own).read_text(encoding="utf-8")
    assert "Pairwise Class Balance on My data" in page
    assert "claims are about LVIS. They are not judged on My shapes" in page
    shown, _, _ = page.partition("<script")  # behind it is the glossary
    assert "My shapes" in shown and "LVIS v0.5" not in shown and "v05" not in shown


def test_plans_know_own_data(own):
    assert {job.run.split("_")[0] for job in jobs(own)} == {"mine"}
    assert images_in(own, "mine", "train") is None  # before `pcb check-data`


def test_rows_of_an_absent_data_set_are_shown_beside_published_numbers(tmp_path):
    study = without(study_in(tmp_path), "v1")
    fabricate(study, "v05_r50_rfs_softmax_plain")
    table = collect(Results(study), "table02")
    assert len(table.rows) == 16 and table.left_out == 0
    texts = {
        row.id: {str(cell) for cell in line if cell.block == tables.OURS}
        for row, line in zip(table.rows, tables.grid(table), strict=True)
    }
    assert texts["v1-rfs"] == {"not in this scale"} and texts["v05-eqlv2"] == {"not run"}
    assert table.rows[8].paper["AP"] == 19.0
    assert "v1_" not in " ".join(study.runs()) and len(study.tables["table02"].rows) == 8
    assert "not in this scale" in tables.html(table)
    assert list(plots.draw(table))


def test_pages_over_all_tables_need_no_absent_data_set(tmp_path):
    study = without(study_in(tmp_path), "v1")
    fabricate(study, "v05_r50_rfs_softmax_plain")
    results = Results(study)
    for summary in study.summaries.values():
        assert collect_summary(results, summary)
    page = build(study).read_text(encoding="utf-8")
    assert "not in this scale" in page and "No row that decides it is in this scale" in page
