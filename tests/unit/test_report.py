"""What a table says: measured and published numbers never mix, what was not run says so, arithmetic is right, the files are well formed.

All metrics here are fabricated test data in a temporary results folder.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pcb.errors import UserError
from pcb.files import write_json
from pcb.reporting import captions, pairs, tables
from pcb.reporting.gather import gather
from pcb.study import METRICS, load_study

RFS_PCB = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"
CLASSES = [
    {
        "id": i + 1,
        "name": f"class {i}",
        "frequency": "rcf"[i // 4],
        "train_images": 3 * i + 1,
        "AP": 5.0 * i,
    }
    for i in range(12)
]


def study_in(folder, seeds=(0,)):
    return load_study("mini", overrides={"results": str(folder), "seeds": list(seeds)})


def fabricate(study, run, seed=0, **plain):
    """Leave metrics of one run, as scoring does: `plain` overrides the metrics of all its variants (90 + position)."""
    values = {metric: 90.0 + i for i, metric in enumerate(METRICS)} | plain
    write_json(
        study.paths.metrics(run, seed),
        {
            "run": run,
            "seed": seed,
            "fingerprint": study.fingerprint(run, seed),
            "images": 24,
            "variants": dict.fromkeys(study.variants(run), values),
            "classes": {"plain": CLASSES},
        },
    )
    write_json(
        study.paths.train(run, seed),
        {
            "run": run,
            "seed": seed,
            "fingerprint": study.fingerprint(run, seed),
            "git": {"commit": "0123456789abcdef", "changed": True},
            "finished": "2030-01-02T03:04:05+00:00",
            "seconds": 40.0,
        },
    )
    matrix = np.random.default_rng(0).dirichlet(np.ones(12), 12)
    np.savez(
        study.paths.confusion(run, seed), matrix=matrix.astype(np.float32), seen=np.full(12, 5)
    )


def gathered(study, target):
    return tables.load(gather(study, target))


def test_a_table_without_runs_shows_no_number_as_ours(tmp_path):
    study = study_in(tmp_path)
    for target in study.tables:
        table = gathered(study, target)
        assert table.rows["ours"].isna().all() and set(table.rows["status"]) == {"not run"}
        text = tables.cells(table)
        assert (text["ours"] == "not run").all(axis=None)
        if "Δ" in text:
            assert (text["Δ"] == "–").all(axis=None)


def test_published_numbers_stay_in_the_papers_columns(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB)
    table = gathered(study, "table06")
    numbers = tables.wide(table).set_index("id")
    for row in study.tables["table06"].rows:
        assert [numbers.loc[row.id, f"paper {m}"] for m in table.columns] == [
            row.paper[m] for m in table.columns
        ]
    assert numbers["ours AP"].dropna().to_dict() == {"a0.4": 90.0}
    assert numbers.loc["a0.4", "Δ AP"] == pytest.approx(90.0 - 27.7)


def test_several_seeds_give_mean_and_sample_deviation_of_those_that_ran(tmp_path):
    study = study_in(tmp_path, seeds=(0, 1, 2))
    for seed, value in ((0, 20.0), (1, 21.0), (2, 24.0)):
        fabricate(study, RFS_PCB, seed, AP=value)
    fabricate(study, "v05_r50_rfs_softmax_iterative", 1, AP=20.0)
    text = tables.cells(gathered(study, "table06"))
    assert text["ours", "AP"].tolist() == [
        "20.0",
        "not run",
        "21.7 ± 2.1",
        "not run",
        "not run",
        "not run",
    ]
    assert text["Δ", "AP"].tolist()[:3] == ["−6.5", "–", "−6.0"]
    assert text["", "seeds"].tolist() == ["1", "0", "3", "0", "0", "0"]


def test_metrics_of_another_configuration_count_as_not_run(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB)
    path = study.paths.metrics(RFS_PCB, 0)
    write_json(path, json.loads(path.read_text()) | {"fingerprint": "of-old"})
    assert set(gathered(study, "table06").rows["status"]) == {"not run"}


def test_a_variant_that_was_not_evaluated_is_not_run(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB)
    path = study.paths.metrics(RFS_PCB, 0)
    metrics = json.loads(path.read_text())
    del metrics["variants"]["step1"]
    write_json(path, metrics)
    status = gathered(study, "table07").rows.groupby("id")["status"].first()
    assert (
        status["rfs-step1"] == "not run"
        and status["rfs-step2"] == status["rfs-step3"] == "measured"
    )


def test_a_group_without_classes_has_no_value_yet_was_measured(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB, APr=None)
    text = tables.cells(gathered(study, "table06"))
    assert (
        text["ours", "APr"][2] == "–"
        and text["ours", "AP"][2] == "90.0"
        and text["Δ", "APr"][2] == "–"
    )


def test_broken_metrics_are_named(tmp_path):
    study = study_in(tmp_path)
    path = study.paths.metrics(RFS_PCB, 0)
    path.parent.mkdir(parents=True)
    path.write_text('{"run": ')
    with pytest.raises(UserError, match=re.escape(str(path))):
        gather(study, "table06")
    assert not study.paths.gathered("table06").exists()


def test_unknown_targets_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="table99"):
        gather(study_in(tmp_path), "table99")
    with pytest.raises(UserError, match=r"table06\.csv does not exist"):
        tables.load(tmp_path / "table06.csv")


def test_a_relative_path_counts_from_here_or_else_from_the_repository(tmp_path, monkeypatch):
    """So a notebook's default works in JupyterLab wherever it was started."""
    study = study_in(tmp_path)
    gather(study, "table06")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.chdir("/")
    assert len(tables.load("mini/gathered/table06.csv").rows) == 6 * 5


def test_a_difference_of_nothing_has_no_sign(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB, AP=27.66, APr=21.84)
    text = tables.cells(gathered(study, "table06"))
    assert (text["Δ", "AP"][2], text["Δ", "APr"][2]) == ("0.0", "0.0")


def test_copied_rows_carry_a_mark_and_its_source(tmp_path):
    table = gathered(study_in(tmp_path), "table02")
    text = tables.cells(table)
    marked = (
        text.loc[
            text["paper", "AP"].str.contains("[†‡]"),
            [("", "Dataset"), ("", "Method"), ("paper", "AP")],
        ]
        .to_numpy()
        .tolist()
    )
    assert marked == [
        ["LVIS v1.0", "RFS", "23.7†"],
        ["LVIS v1.0", "EQL v2", "25.5†"],
        ["LVIS v1.0", "Seesaw", "26.8‡"],
    ]
    notes = tables.footnotes(table)
    assert (
        notes[0].startswith("†")
        and "LOCE" in notes[0]
        and notes[1].startswith("‡")
        and "MMDetection" in notes[1]
    )


@pytest.mark.parametrize("target", ["table02", "table03", "table06", "figure1"])
def test_markdown_rows_have_one_width_and_name_their_block(tmp_path, target):
    text = tables.markdown(gathered(study_in(tmp_path), target))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert all(
        re.search(r"\((ours|paper|Δ)\)", head)
        for head in lines[0].split("|")
        if re.match(" (AP|PwB)", head)
    )


@pytest.mark.parametrize("target", ["table02", "table03", "table06", "figure1"])
def test_latex_is_balanced_and_ascii(tmp_path, target):
    table = gathered(study_in(tmp_path), target)
    text = tables.latex(table)
    assert text.isascii()
    assert text.count("{") == text.count("}") and len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    assert re.findall(r"\\begin\{(\w+)\}", text) == list(
        reversed(re.findall(r"\\end\{(\w+)\}", text))
    )
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(tables.wide(table)) and all(
        len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows
    )


def test_html_covers_every_column_in_every_row(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, "v05_r50_random_softmax_plain")
    text = tables.html(gathered(study, "table02"))
    assert text.count("not run") == 15
    open_spans, widths = [], []
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text.split("<tbody>")[1], re.S):
        cells = re.findall(r"<t[dh]([^>]*)>", row)
        spans = [int((re.search(r'colspan="(\d+)"', c) or [0, 1])[1]) for c in cells]
        widths.append(sum(spans) + sum(1 for left in open_spans if left))
        open_spans = [left - 1 for left in open_spans if left > 1]
        open_spans += [int(n) - 1 for c in cells for n in re.findall(r'rowspan="(\d+)"', c)]
    assert set(widths) == {3 + 3 * 6}


def test_a_label_is_joined_only_within_the_label_to_its_left(tmp_path):
    """In Table 3 the backbone R-50-FPN ends one data set and begins the next: two cells."""
    text = tables.html(gathered(study_in(tmp_path), "table03"))
    assert (
        text.count(">R-50-FPN<") == 2
        and text.count(">R-101-FPN<") == 1
        and text.count(">LVIS v1.0<") == 1
    )


def test_a_page_names_data_and_detector_behind_our_numbers(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB)
    table = gathered(study, "table06")
    assert "measured: emoji-LVIS, half-width ResNet-18-FPN, 96 px" in tables.html(table)
    caption = dict(captions.caption(table.about))
    assert "24 val images, 12 classes (4 rare, 4 common, 4 frequent)" in caption["Data"]
    assert caption["Runs"] == "1 training finished, 2030-01-02, 40 s in all"
    assert caption["Code"] == "git 0123456+"


def test_claims_on_a_page_rest_on_its_own_runs(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB, AP=50.0)
    for row in study.tables["table06"].rows:
        if row.run != RFS_PCB:
            fabricate(study, row.run, AP=40.0)
    shown = gathered(study, "table06").about["claims"]
    best = [
        c
        for c in shown
        if c["checks"]
        == ["AP: table06/a0.4 > table06/a0, table06/a0.2, table06/a0.6, table06/a0.8, table06/a1"]
    ]
    assert best and best[0]["ours"]["verdict"] == "holds"
    assert all("table02" not in check for claim in shown for check in claim["checks"])
    empty = gathered(study_in(tmp_path / "empty"), "table06").about["claims"]
    assert {c["ours"]["verdict"] for c in empty} == {"not run"} and "holds" in {
        c["paper"]["verdict"] for c in empty
    }


def test_claims_on_the_matrix_are_judged_over_seeds(tmp_path):
    study = study_in(tmp_path, seeds=(0, 1, 2))
    run = study.tables["figure1"].rows[0].run
    matrix = np.eye(12)
    for seed, lean in enumerate((0.30, 0.36, 0.33)):
        fabricate(study, run, seed, Mrf=100 * lean, Mfr=0.25)
        matrix[:4, 11], matrix[11, 0] = (
            lean,
            0.01,
        )  # each rare class is given to the last, frequent one
        matrix[range(12), range(12)] = [1 - lean] * 4 + [1] * 7 + [0.99]
        np.savez(study.paths.confusion(run, seed), matrix=matrix, seen=np.full(12, 5))
    about = gathered(study, "figure1").about
    bias, pair = (
        next(c for c in about["claims"] if c["id"] == key)
        for key in ("bias-is-pairwise", "figure-pair")
    )
    assert (
        bias["ours"]["verdict"] == bias["paper"]["verdict"] == "holds"
        and bias["paper"]["checks"][0]["margin"] == 18
    )
    check = bias["ours"]["checks"][
        0
    ]  # the mean over four frequent classes of 0.01 from one of them
    assert (
        check["seeds"] == 3
        and check["margin"] == pytest.approx(33 - 0.25)
        and check["noise"] == pytest.approx(3)
    )
    assert [c["verdict"] for c in pair["ours"]["checks"]] == ["holds", "no such class here"]
    assert pair["paper"]["verdict"] == "not printed"


def test_ap_of_single_classes_comes_with_a_table_of_base_and_pcb_alone(tmp_path):
    study = study_in(tmp_path, seeds=(0, 1))
    fabricate(study, RFS_PCB, 1)
    found = gathered(study, "table02").about["classes"]
    assert found == {
        "v05": {
            "rows": {"v05-rfs-pcb": {"1": [5.0 * i for i in range(12)]}},
            "groups": "rrrrccccffff",
            "train_images": [3 * i + 1 for i in range(12)],
        }
    }
    assert gathered(study, "table06").about["classes"] == {}


def test_figure_1_reads_the_matrix_that_gather_points_to(tmp_path):
    study = study_in(tmp_path)
    run = study.tables["figure1"].rows[0].run
    assert pairs.load(gathered(study, "figure1")) is None
    fabricate(study, run)
    found = pairs.load(gathered(study, "figure1"))
    assert (
        found.matrix.shape == (12, 12)
        and found.names[3] == "class 3"
        and found.frequency[11] == "f"
    )
    chosen = found.choose(10, seed=0)
    assert chosen == found.choose(10, seed=0) and len(set(chosen)) == 10
    np.savez(study.paths.confusion(run, 0), matrix=np.eye(3), seen=np.ones(3))
    with pytest.raises(UserError, match="12 classes"):
        pairs.load(gathered(study, "figure1"))


def test_reporting_never_imports_torch():
    modules = ", ".join(
        f"pcb.reporting.{path.stem}" for path in Path(tables.__file__).parent.glob("[a-z]*.py")
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['torch'] = None; import {modules}"],
        check=True,
    )
