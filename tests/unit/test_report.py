"""Tables: measured and published numbers never mix, `not run` is marked, the files are well formed.

All metrics are fabricated test data in a temporary results folder.
"""

import html
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fabricate import RFS_PCB, SOFTMAX, fabricate, resample, study_in, write_confusion
from matplotlib.text import Text
from PIL import Image

import pcb.reporting
from pcb.errors import UserError
from pcb.evaluation.bootstrap import write_bootstrap
from pcb.evaluation.confusion_metrics import Confusion
from pcb.reporting import captions, findings, plots, protocols, style, tables
from pcb.reporting.claims import (
    combined,
    count_verdicts,
    decides,
    grouped,
    label,
    matrix_entry,
    verdicts,
)
from pcb.reporting.findings import COLUMNS, changes
from pcb.reporting.gather import gather
from pcb.reporting.notebook import cells
from pcb.reporting.results import Results
from pcb.study import fingerprint, load_study
from pcb.study.records import read_record, write_record


def gathered(study, target):
    return tables.load(gather(study, target))


def column(table, block, name):
    """The texts of one column, row by row."""
    return [
        str(c) for row in tables.grid(table) for c in row if (c.block, c.column) == (block, name)
    ]


# Numbers


def test_a_table_without_runs_shows_no_number_as_ours(tmp_path):
    study = study_in(tmp_path)
    for target in study.tables:
        table = gathered(study, target)
        assert not any(row.ours for row in table.rows)
        cells = [cell for row in tables.grid(table) for cell in row]
        assert all(cell.not_run for cell in cells if cell.block == "ours")
        assert {str(cell) for cell in cells if cell.block == "Δ ours"} <= {"–", ""}


def test_published_numbers_stay_in_the_papers_columns(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB)
    table = gathered(study, "table06")
    numbers = tables.numbers(table).set_index("id")
    for row in study.tables["table06"].rows:
        published = [numbers.loc[row.id, f"paper {metric}"] for metric in table.metrics]
        assert published == [row.paper[metric] for metric in table.metrics]
    assert numbers["ours AP"].dropna().to_dict() == {"a0.4": 90.0}
    assert "ours − paper AP" not in numbers  # emoji-LVIS is not LVIS
    write_check(study, "v0.5")
    numbers = tables.numbers(gathered(study, "table06")).set_index("id")
    assert numbers.loc["a0.4", "ours − paper AP"] == pytest.approx(90.0 - 27.7)


def test_several_seeds_give_mean_and_sample_deviation_of_those_that_ran(tmp_path):
    study = study_in(tmp_path, seeds=(0, 1, 2))
    for seed, value in ((0, 20.0), (1, 21.0), (2, 24.0)):
        fabricate(study, RFS_PCB, seed, AP=value)
    fabricate(study, "v05_r50_rfs_softmax_iterative", 1, AP=20.0)
    table = gathered(study, "table06")
    missing = ["not run"] * 3
    assert column(table, "ours", "AP") == ["20.0", "not run", "21.7 ± 2.1", *missing]
    assert column(table, "Δ ours", "AP")[:3] == ["", "–", "+1.0"]  # of seed 1, which both have
    assert column(table, "Δ paper", "AP")[:3] == ["", "+0.9", "+1.2"]
    assert column(table, "", "seeds") == ["1 of 3", "0 of 3", "3", *["0 of 3"] * 3]


def test_metrics_of_another_configuration_are_not_run(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB)
    path = study.paths.metrics(RFS_PCB, 0)
    write_record(path, json.loads(path.read_text()) | {"fingerprint": "another"})
    assert not any(row.ours for row in gathered(study, "table06").rows)


def test_a_variant_that_was_not_evaluated_is_not_run(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB)
    path = study.paths.metrics(RFS_PCB, 0)
    metrics = json.loads(path.read_text())
    del metrics["variants"]["step1"]
    write_record(path, metrics)
    measured = {row.id: bool(row.ours) for row in gathered(study, "table07").rows}
    assert not measured["rfs-step1"]
    assert measured["rfs-step2"] and measured["rfs-step3"]


def test_a_group_without_classes_is_measured_without_a_value(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB, APr=None)
    table = gathered(study, "table06")
    assert column(table, "ours", "APr")[2] == column(table, "Δ ours", "APr")[2] == "–"
    assert column(table, "ours", "AP")[2] == "90.0"


def test_a_difference_of_nothing_has_no_sign(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB, AP=27.66, APr=21.84)
    write_check(study, "v0.5")
    table = gathered(study, "table06")
    delta = tables.DELTA
    assert column(table, delta, "AP")[2] == column(table, delta, "APr")[2] == "0.0"


def test_a_row_is_compared_with_its_base_row_over_the_same_seeds_and_images(tmp_path):
    study, base = study_in(tmp_path, seeds=(0, 1, 2)), "v05_r50_rfs_softmax_iterative"
    images = np.random.default_rng(0).normal(0, 3, 50)  # what the two runs have in common
    for seed, gain in enumerate((1.0, 2.0, 3.0)):
        fabricate(study, base, seed, AP=20.0 + seed, PwB=2.0)
        fabricate(study, RFS_PCB, seed, AP=20.0 + seed + gain, PwB=1.0)
    found = gathered(study, "table06").rows[2].gains["AP"]
    reach = 4.302653 * 1.0 / 3**0.5  # t of two degrees of freedom, standard deviation 1
    assert found["mean"] == pytest.approx(2.0) and not found["images"]
    assert found["high"] - found["mean"] == pytest.approx(reach, rel=1e-5)
    for seed, gain in enumerate((1.0, 2.0, 3.0)):
        resample(study, base, seed, {("lvis", "plain"): {"AP": 20 + images}})
        resample(study, RFS_PCB, seed, {("lvis", "plain"): {"AP": 20 + gain + images}})
    table = gathered(study, "table06")
    found = table.rows[2].gains["AP"]
    assert found["images"] and found["high"] - found["mean"] == pytest.approx(reach, rel=1e-3)
    cell = next(c for c in tables.grid(table)[2] if (c.block, c.column) == ("Δ ours", "AP"))
    assert (str(cell), cell.clear) == ("+2.0 ± 2.5", False)


def test_a_difference_beyond_the_noise_is_marked_and_one_seed_is_provisional(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, "v05_r50_rfs_softmax_iterative", AP=20.0)
    fabricate(study, RFS_PCB, AP=22.0)
    table = gathered(study, "table06")
    assert table.rows[2].gains["AP"]["low"] is None  # one seed without resamples has no interval
    assert any(note.startswith("Provisional") for note in tables.footnotes(table))
    for run, value in (("v05_r50_rfs_softmax_iterative", 20.0), (RFS_PCB, 22.0)):
        noise = np.random.default_rng(0).normal(0, 1, 50)
        resample(study, run, 0, {("lvis", "plain"): {"AP": value + noise}})
    marked = {c.column for c in tables.grid(gathered(study, "table06"))[2] if c.clear}
    assert marked == {"AP"}
    clear = sum(c.clear for row in tables.grid(gathered(study, "table06")) for c in row)
    written = gathered(study, "table06")
    cells = re.findall(r"\| +\*\*[^|]+\*\* \|", tables.markdown(written))
    assert len(cells) == tables.latex(written).count(r"\textbf{") == clear > 0


def write_check(study, release):
    """A report of `pcb check-data` on the present files of v05."""
    job = fingerprint(study.check_job("v05"))
    write_record(study.paths.data_check("v05"), {"matches_release": release, "fingerprint": job})


def test_data_are_comparable_where_check_data_found_the_release(tmp_path):
    study = study_in(tmp_path)
    assert not gathered(study, "table06").about["comparable"]  # not checked yet
    for release, comparable in (("v0.5", True), ("v1.0", False), (None, False)):
        write_check(study, release)
        assert gathered(study, "table06").about["comparable"] == comparable
    write_check(study, "v0.5")
    assert not gathered(study, "table02").about["comparable"]  # its other data set is v1.0
    write_record(study.paths.data_check("v05"), {"matches_release": "v0.5", "fingerprint": "old"})
    assert not gathered(study, "table06").about["comparable"]  # the data changed since


# Files


def test_broken_metrics_are_named(tmp_path):
    study = study_in(tmp_path)
    path = study.paths.metrics(RFS_PCB, 0)
    path.parent.mkdir(parents=True)
    path.write_text('{"run": ')
    with pytest.raises(UserError, match=re.escape(str(path))):
        gather(study, "table06")
    assert not study.paths.gathered("table06").exists()


def test_a_missing_gathered_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"table06\.json does not exist"):
        tables.load(tmp_path / "table06.json")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 0, "rows": []}'])
def test_gathered_files_that_are_broken_or_of_another_format_are_refused(tmp_path, content):
    (tmp_path / "table06.json").write_text(content)
    with pytest.raises(UserError, match=r"run `snakemake --cores all table06` again"):
        tables.load(tmp_path / "table06.json")


def test_a_table_is_the_same_after_it_was_written_and_loaded(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB, AP=12.345678901234567)
    table = gathered(study, "table02")
    assert tables.ResultTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    (row,) = [row for row in table.rows if row.run == RFS_PCB]
    assert row.ours["0"]["AP"] == 12.345678901234567


def test_a_relative_path_counts_from_here_or_else_from_the_repository(tmp_path, monkeypatch):
    """So the default of a notebook works in JupyterLab wherever it was started."""
    study = study_in(tmp_path)
    gather(study, "table06")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.chdir("/")
    assert len(tables.load("mini/gathered/table06.json").rows) == 6


# Renderings


def test_copied_rows_carry_a_mark_and_its_source(tmp_path):
    table = gathered(study_in(tmp_path), "table02")
    cells = zip(table.rows, column(table, "paper", "AP"), strict=True)
    marked = [(*row.labels[:2], text) for row, text in cells if text[-1] in "†‡"]
    assert marked == [
        ("LVIS v1.0", "RFS", "23.7†"),
        ("LVIS v1.0", "EQL v2", "25.5†"),
        ("LVIS v1.0", "Seesaw", "26.8‡"),
    ]
    first, second, third, _ = tables.footnotes(table)
    assert first.startswith("†") and "LOCE" in first
    assert second.startswith("‡") and "MMDetection" in second
    assert third.startswith("Row labels name the paper's data and backbones")


@pytest.mark.parametrize("target", ["table02", "table03", "table06", "figure1"])
def test_markdown_rows_have_one_width_and_name_their_block(tmp_path, target):
    text = tables.markdown(gathered(study_in(tmp_path), target))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    metrics = [head for head in lines[0].split("|") if re.match(" *(AP|PwB)", head)]
    assert metrics and all(re.search(r"\((Δ )?(ours|paper)\)", head) for head in metrics)


@pytest.mark.parametrize("target", ["table02", "table03", "table06", "figure1"])
def test_latex_is_balanced_and_ascii(tmp_path, target):
    table = gathered(study_in(tmp_path), target)
    text = tables.latex(table)
    assert text.isascii()
    assert text.count("{") == text.count("}")
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    opened, closed = (re.findall(rf"\\{word}\{{(\w+)\}}", text) for word in ("begin", "end"))
    assert opened == closed[::-1]
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(table.rows)
    assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)


def test_html_covers_every_column_in_every_row(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, SOFTMAX)
    text = tables.html(gathered(study, "table02"))
    assert text.count("not run") == 15
    open_spans, widths = [], []
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text.split("<tbody>")[1], re.S):
        cells = re.findall(r"<t[dh]([^>]*)>", row)
        spans = [int((re.search(r'colspan="(\d+)"', c) or [0, 1])[1]) for c in cells]
        widths.append(sum(spans) + sum(1 for left in open_spans if left))
        open_spans = [left - 1 for left in open_spans if left > 1]
        open_spans += [int(n) - 1 for c in cells for n in re.findall(r'rowspan="(\d+)"', c)]
    assert set(widths) == {3 + 4 * 6}


def test_a_label_is_joined_only_within_the_label_to_its_left(tmp_path):
    """In Table 3 the backbone R-50-FPN ends one data set and begins the next: two cells."""
    text = tables.html(gathered(study_in(tmp_path), "table03"))
    assert text.count(">R-50-FPN<") == 2
    assert text.count(">R-101-FPN<") == text.count(">LVIS v1.0<") == 1


def test_a_page_names_data_and_detector_behind_our_numbers(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, RFS_PCB)
    table = gathered(study, "table06")
    assert "measured: emoji-LVIS, half-width ResNet-18-FPN, 96 px" in tables.html(table)
    caption = dict(captions.caption(table.about))
    assert "24 val images, 12 classes (4 rare, 4 common, 4 frequent)" in caption["Data"]
    assert caption["Runs"] == "1 training finished, 2030-01-02, 40 s in all"
    assert caption["Code"] == "git 0123456+"


# Claims


def test_claims_on_a_page_rest_on_its_own_runs(tmp_path):
    study = study_in(tmp_path)
    for row in study.tables["table06"].rows:
        fabricate(study, row.run, AP=50.0 if row.run == RFS_PCB else 40.0)
    claims = gathered(study, "table06").claims
    (best,) = [claim for claim in claims if claim["id"] == "alpha-best"]
    assert best["ours"]["verdict"] == "holds"
    assert all("table02" not in check["text"] for claim in claims for check in claim["checks"])
    empty = gathered(study_in(tmp_path / "empty"), "table06").claims
    assert {claim["ours"]["verdict"] for claim in empty} == {"not run"}
    assert "holds" in {claim["paper"]["verdict"] for claim in empty}


def test_a_claim_over_two_tables_is_on_the_page_that_has_all_of_its_runs(tmp_path):
    study = study_in(tmp_path)
    pages = {
        claim.id: [table for table in claim.tables if decides(study, table, claim)]
        for claim in study.claims
        if len(claim.tables) > 1
    }
    # Tables 2 and 3 share runs; Table 10's base is in no other table.
    assert pages["seesaw-rare"] == ["table03"] and pages["iterative-makes-room"] == []


def test_an_entry_of_the_matrix_is_a_row_predicted_as_a_column():
    matrix = np.array([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0], [0.0, 0.0, 0.0]])
    found = Confusion(matrix, np.array([4, 4, 0]), ["dove", "owl", "T-shirt"], ["r"] * 3, [1] * 3)
    results = SimpleNamespace(confusion=lambda run, seed: found)
    entries = [
        matrix_entry(results, "run", 0, metric)
        for metric in ("M[dove>owl]", "M[owl>dove]", "M[T-shirt>owl]", "M[dove>polo]")
    ]
    # A class without a proposal has no row, and a class that the data set lacks no entry.
    assert entries == [pytest.approx(30), pytest.approx(10), None, None]


def test_claims_on_the_matrix_are_judged_over_seeds(tmp_path):
    study = study_in(tmp_path, seeds=(0, 1, 2))
    for seed, lean in enumerate((0.30, 0.36, 0.33)):
        # Each rare class is predicted as the last, frequent one.
        fabricate(study, SOFTMAX, seed, Mrf=100 * lean, Mfr=0.25)
        matrix = np.eye(12)
        matrix[:4, 11], matrix[11, 0] = lean, 0.01
        matrix[range(12), range(12)] = [1 - lean] * 4 + [1] * 7 + [0.99]
        write_confusion(study, SOFTMAX, seed, matrix)
    claims = {claim["id"]: claim for claim in gathered(study, "figure1").claims}
    bias, pair = claims["bias-is-pairwise"], claims["figure-pair"]
    assert bias["ours"]["verdict"] == bias["paper"]["verdict"] == "holds"
    check = bias["checks"][0]
    assert check["paper"]["margin"] == 18
    assert check["ours"]["seeds"] == 3 and not check["ours"]["images"]
    assert check["ours"]["margin"] == pytest.approx(33 - 0.25)
    reach = 4.302653 * 3 / 3**0.5  # Student's, of a standard deviation of 3 over 3 seeds
    assert check["ours"]["high"] - check["ours"]["margin"] == pytest.approx(reach, abs=1e-4)
    assert pair["ours"]["verdict"] == "no such class here"
    assert pair["paper"]["verdict"] == "not printed"


def test_verdicts_use_the_resamples_of_the_images(tmp_path):
    """Without them one seed has no interval; with them a difference of 2 may be noise."""
    study = study_in(tmp_path)
    for row in study.tables["table10"].rows:
        fabricate(study, row.run, AP=40.0)
    help_row, base = (study.tables["table10"].rows[k].run for k in (1, 0))
    fabricate(study, help_row, AP=42.0)

    def judged():
        claims = {claim["id"]: claim for claim in verdicts(Results(study))}
        return claims["plain-alpha-helps"]

    assert (
        judged()["ours"]["verdict"] == "holds" and judged()["checks"][0]["ours"]["images"] is False
    )
    noise = np.random.default_rng(0).normal(size=50)
    for run, values in ((help_row, 42 + 3 * noise), (base, 40 + noise)):
        resample(study, run, 0, {("lvis", "plain"): {"AP": values}})
    claim = judged()
    assert claim["ours"] == {
        "verdict": "within noise",
        "counts": {"within noise": 1},
        "provisional": True,
    }
    assert claim["checks"][0]["ours"]["images"] is True
    write_bootstrap(study.paths.bootstrap(base, 0), {})
    with pytest.raises(UserError, match="damaged"):
        judged()


def test_verdicts_under_another_protocol_read_its_numbers(tmp_path):
    study = study_in(tmp_path)
    for row in study.tables["table10"].rows:
        fabricate(study, row.run, AP=40.0)
    path = study.paths.metrics(study.tables["table10"].rows[1].run, 0)
    metrics = json.loads(path.read_text())
    metrics["protocols"] = {"fixed": {"plain": {"AP": 41.0}}}
    write_record(path, metrics)
    base = study.paths.metrics(study.tables["table10"].rows[0].run, 0)
    metrics = json.loads(base.read_text())
    metrics["protocols"] = {"fixed": {"plain": {"AP": 42.0}}}
    write_record(base, metrics)
    results = Results(study)
    by_protocol = {
        protocol: {c["id"]: c["ours"]["verdict"] for c in verdicts(results, protocol=protocol)}
        for protocol in ("lvis", "fixed", "verified")
    }
    found = [by_protocol[p]["plain-alpha-helps"] for p in ("lvis", "fixed", "verified")]
    assert found == ["within noise", "fails", "not run"]


def test_a_cause_is_shown_only_where_the_claim_fails_at_its_scale(tmp_path):
    study = study_in(tmp_path)
    rows = study.tables["table10"].rows
    cause = {"text": "why", "experiment": "results/benchmarks/experiments/x.json"}

    def shown(difference, scale):
        for row in rows:
            fabricate(study, row.run, AP=40.0 + (row.id == "a0.2") * difference)
        results = Results(study)
        study.claims = tuple(
            replace(c, cause={**cause, "scale": scale}) if c.id == "plain-alpha-helps" else c
            for c in study.claims
        )
        (claim,) = (c for c in verdicts(results) if c["id"] == "plain-alpha-helps")
        return claim["cause"]

    assert shown(-1.0, "mini")["text"] == "why"
    assert shown(-1.0, "lvis") is None and shown(1.0, "mini") is None


def test_a_finding_names_what_decides_it_and_where_it_changes(tmp_path):
    study = study_in(tmp_path)
    rows = {row.id: row.run for row in study.tables["table10"].rows}
    for run in rows.values():
        fabricate(study, run, AP=40.0, APr=40.0, APc=40.0, APf=40.0)
    fabricate(study, rows["a0.6"], APr=42.0, APc=39.0, APf=38.0, AP=40.0)
    for run in rows.values():
        metrics = read_record(study.paths.metrics(run, 0))
        flat = dict.fromkeys(("AP", "APr", "APc", "APf", "APb"), 40.0)
        metrics["protocols"] = {"fixed": {"plain": flat}}
        write_record(study.paths.metrics(run, 0), metrics)
    page = tables.load_json(gather(study, "findings"))
    found = {claim["id"]: claim for claim in page["claims"]}
    assert set(found) == {claim.id for claim in study.claims}
    rare = found["plain-alpha-rare"]
    assert rare["ours"]["verdict"] == "holds" and rare["deciding"] == 0
    assert {k: v["verdict"] for k, v in changes(rare).items()} == {"fixed": "within noise"}
    label = "Table 10, AP_r: 0.6 > 0.0, 0.2, 0.4, 0.8, 1.0"
    assert rare["checks"][0]["label"] == label
    assert found["pcb-lifts-ap"]["deciding"] is None  # not run
    assert not found["bias-is-pairwise"]["protocols"]  # of the matrix, which is not scored
    lines = list(findings.lines(page))
    assert len(lines) == len(study.claims) and {len(line) for line in lines} == {len(COLUMNS)}
    csv = dict(zip(COLUMNS, next(line for line in lines if line[0] == rare["id"]), strict=True))
    assert (csv["margin"], csv["hold"], csv["changes_under"]) == (2.0, 1, "fixed: within noise")
    shown = cells.findings(page)
    text = html.unescape(re.sub("<[^>]+>", "", shown.html))
    assert rare["quote"].replace("AP_r", "APr") in text and "AP-Fixed (within noise" in text
    assert text.count("not known") == sum(c["ours"]["verdict"] == "fails" for c in page["claims"])


def test_labels_of_checks_read_as_the_tables_do():
    study = load_study("mini")
    labels = {label(check, study) for claim in study.claims for check in claim.checks}
    assert "Table 2, LVIS v0.5, RFS, AP: with PCB > without" in labels
    assert "Table 4, no paradigm, AP: no regulariser > CM †" in labels
    assert "Table 6 0.2 > Table 10 0.2" in {text.partition(": ")[2] for text in labels}
    assert "Figure 1, M_rf % − M_fr %: Mask R-CNN R-50-FPN > 0" in labels


def test_counts_name_what_was_not_judged():
    assert style.tally_text({"holds": 7, "fails": 1}) == "7 of 8 checks hold"
    text = style.tally_text({"holds": 5, "not printed": 3})
    assert text == "5 of 5 checks hold, 3 not printed"
    assert style.tally_text({"not run": 2}) == "2 not run" and style.tally_text({}) == ""


def test_sizes_are_counted_apart(tmp_path):
    study = study_in(tmp_path)
    for row in study.tables["table01"].rows:
        fabricate(study, row.run)
    found = count_verdicts(verdicts(Results(study)))
    assert found["direction"]["claims"] + found["size"]["claims"] == len(study.claims)
    assert found["size"]["ours"]["claims"]["not comparable"] == 2  # cm-over-ms-size, bias-size
    assert found["size"]["paper"]["claims"] == {"holds": found["size"]["claims"]}


# What plots show


def test_ap_of_single_classes_comes_with_the_table_whose_plot_shows_it(tmp_path):
    study = study_in(tmp_path, seeds=(0, 1))
    fabricate(study, RFS_PCB, 1)
    assert gathered(study, "table02").class_ap == {
        "v05": {
            "rows": {"v05-rfs-pcb": {"1": [5.0 * i for i in range(12)]}},
            "groups": "rrrrccccffff",
            "train_images": [3 * i + 1 for i in range(12)],
        }
    }
    assert gathered(study, "table06").class_ap == {}


def test_figure_1_shows_ten_classes_of_the_measured_matrix(tmp_path):
    study = study_in(tmp_path)
    assert gathered(study, "figure1").confusion is None
    fabricate(study, SOFTMAX)
    found, whole = gathered(study, "figure1").confusion, Results(study).confusion(SOFTMAX, 0)
    chosen = [int(re.match(r"class (\d+)", name)[1]) for name in found["classes"]]
    assert len(set(chosen)) == 10 and chosen == sorted(chosen)  # rarest first
    assert np.array_equal(found["matrix"], whole.matrix[chosen][:, chosen])
    assert np.array_equal(found["groups"], whole.by_group())
    gaps = [pair["i_for_j"] - pair["j_for_i"] for pair in found["pairs"]]
    assert len(gaps) == 10 and gaps == sorted(gaps, reverse=True)


def test_a_matrix_of_other_classes_is_refused(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, SOFTMAX)
    write_confusion(study, SOFTMAX, 0, np.eye(3))
    with pytest.raises(UserError, match="12 classes"):
        gather(study, "figure1")


def drawn_texts(figure, monkeypatch):
    """The texts that appear in a figure with their boxes in pixels."""
    drawn, draw = [], Text.draw

    def record(self, renderer):
        if self.get_visible() and self.get_text():
            drawn.append((self.get_text(), self.get_window_extent(renderer)))
        draw(self, renderer)

    with monkeypatch.context() as patch:
        figure.draw_without_rendering()  # settles the layout
        patch.setattr(Text, "draw", record)
        figure.draw_without_rendering()
    return drawn


def assert_no_overlap(figure, monkeypatch):
    shown = drawn_texts(figure, monkeypatch)
    assert len(shown) > 10
    inside = figure.bbox.padded(1)
    for k, (text, box) in enumerate(shown):
        assert inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1), text
        for other, other_box in shown[k + 1 :]:
            assert not box.padded(-0.5).overlaps(other_box), f"{text!r} covers {other!r}"


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("target", ["table02", "table03", "table06", "table07", "table08"])
def test_texts_of_a_plot_do_not_overlap(tmp_path, monkeypatch, target, seeds):
    study = study_in(tmp_path, seeds=range(seeds))
    for run in study.runs(target):
        for seed in study.seeds:
            values = dict.fromkeys(study.tables[target].columns, 10.0 + seed)
            fabricate(study, run, seed, **values)
    for section in plots.draw(gathered(study, target)):
        assert_no_overlap(section.plot.figure, monkeypatch)


def test_panels_of_ours_and_the_paper_have_equal_spans(tmp_path):
    """A slope of ours is as steep as the same slope of the paper's."""
    study = study_in(tmp_path)
    for k, run in enumerate(study.runs("table02", "table06")):
        fabricate(study, run, AP=50.0 + 3 * k, APr=10.0 + k, APf=60.0, PwB=2.0)

    def spans(ax):
        return np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())

    (curve,) = plots.draw(gathered(study, "table06"))
    ours, paper = map(spans, curve.plot.figure.axes[:2])
    assert ours[1] == pytest.approx(paper[1])
    arrows = next(plots.draw(gathered(study, "table02")))
    upper, lower = (list(map(spans, arrows.plot.figure.axes[k : k + 2])) for k in (0, 2))
    assert upper[0] == pytest.approx(upper[1])
    assert lower[0][0] == pytest.approx(lower[1][0])
    assert lower[0][1] < lower[1][1]  # PwB grows with the number of classes


@pytest.mark.parametrize("target", ["table02", "table03", "table06", "table07", "table08"])
def test_a_table_without_published_numbers_has_its_plots(tmp_path, target):
    """As an overlay's own table."""
    study = study_in(tmp_path)
    fabricate(study, study.runs(target)[0])
    table = gathered(study, target)
    bare = [replace(row, paper={}, copied_from=None) for row in table.rows]
    assert list(plots.draw(replace(table, rows=bare)))


def test_the_description_of_a_plot_says_what_it_shows(tmp_path):
    study = study_in(tmp_path)
    for row in study.tables["table02"].rows:
        with_pcb = row.labels["PCB"] == "✓"
        worse = row.id == "v1-seesaw-pcb"
        fabricate(study, row.run, AP=20.0 + with_pcb - 2 * worse, PwB=3.0 - with_pcb)
    drawn = [section.plot for section in plots.draw(gathered(study, "table02"))]
    assert "Ours: PCB raises AP_r for 0 of 8, " in drawn[0].alt
    assert "raises AP for 7 of 8, lowers PwB for 8 of 8 base methods" in drawn[0].alt
    assert "LVIS v0.5: PCB changes AP of a class by 0.0 for rare ones" in drawn[1].alt
    image = Image.open(io.BytesIO(drawn[0].png()))
    assert image.info["Description"] == drawn[0].alt
    for row, ap in zip(study.tables["table06"].rows, (1.0, 3.0, 2.0, 2.0, 2.0), strict=False):
        fabricate(study, row.run, AP=ap)
    (curve,) = plots.draw(gathered(study, "table06"))
    second = study.tables["table06"].rows[1].labels["α"]
    assert f"highest at α = {second}. Paper: " in curve.plot.alt


def test_methods_differ_by_marker_as_well_as_by_colour(tmp_path):
    study = study_in(tmp_path)
    plot = next(plots.draw(gathered(study, "table02"))).plot
    (legend,) = plot.figure.legends
    names = list(dict.fromkeys(row.labels["Method"] for row in study.tables["table02"].rows))
    looks = [(h.get_marker(), h.get_color()) for h in legend.get_lines()[: len(names)]]
    assert len({marker for marker, _ in looks}) == len({colour for _, colour in looks}) == 4


def test_texts_of_figure_1_and_of_the_pages_of_images_do_not_overlap(tmp_path, monkeypatch):
    study = study_in(tmp_path)
    fabricate(study, SOFTMAX)
    assert_no_overlap(plots.confusion(gathered(study, "figure1")).figure, monkeypatch)
    points = {"groups": ["rf", "rc", "cf"], "up": [0.1, 0.2, 0.02], "down": [0.01, 0.0, 0.3]}
    counts = {group: {"objects": 40, "both": 20, "gains": 9, "losses": 8} for group in "rcf"}
    entry = {"label": "Softmax", "missing": [], "least": 1e-3, "counts": counts}
    page = {"compare": [entry | {"both_ways": [points, points]}] * 2}
    assert_no_overlap(plots.both_ways(page).figure, monkeypatch)
    assert_no_overlap(plots.recognised(page).figure, monkeypatch)


def test_a_table_without_plots_draws_the_groups_of_classes(tmp_path):
    table = gathered(study_in(tmp_path), "table08")
    bare = tables.ResultTable(**{**vars(table), "plots": []})
    (section,) = plots.draw(bare)
    assert section.title == "Picture" and section.plot.png().startswith(b"\x89PNG")


def test_reporting_never_imports_torch():
    folder = Path(pcb.reporting.__file__).parent
    names = [path.relative_to(folder).with_suffix("") for path in folder.rglob("[a-z]*.py")]
    modules = ", ".join(f"pcb.reporting.{'.'.join(name.parts)}" for name in names)
    code = f"import sys; sys.modules['torch'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dollar_signs_in_names_are_no_mathematics(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, study.tables["figure1"].runs[0])
    figure1 = gathered(study, "figure1")
    name = r"a $1 and $\frac{ bill"
    figure1.confusion["classes"] = [name] * len(figure1.confusion["classes"])
    table = gathered(study, "table06")
    rows = [replace(row, labels=[name] * len(row.labels)) for row in table.rows]
    shown = [plots.confusion(figure1), plots.groups(replace(table, rows=rows))]
    for plot in shown:
        assert plot.png().startswith(b"\x89PNG")  # mathtext would fail to parse the name
    labels = [label.get_text() for label in shown[0].figure.axes[0].get_yticklabels()]
    assert labels == [name.replace("$", r"\$")] * 10


# Protocols


def test_the_page_of_protocols_tells_stable_effects_from_others(tmp_path):
    study = study_in(tmp_path, seeds=(0, 1))
    summary = study.summaries["protocols"]
    curve = [30.0, 25.0, 20.0]
    for row in summary.rows:
        for seed, shift in ((0, -0.01), (1, 0.01)):
            if not study.paths.metrics(row.run, seed).exists():
                fabricate(study, row.run, seed)
            metrics = read_record(study.paths.metrics(row.run, seed))
            # CM raises AP_r under LVIS's rule alone, PCB under both.
            gain = {"plain": (0, 0), "ms-val": (1, 1), "cm-val": (5, -2), "norcal": (1, 1)}
            lvis, verified = (2, 2) if "pcb" in row.run else gain[row.variant]
            values = dict.fromkeys(("AP", "APr", "APc", "APf", "APb"), 20.0 + shift)
            metrics["variants"][row.variant] = values | {"APr": 20.0 + shift + lvis}
            metrics.setdefault("protocols", {}).setdefault("verified", {})[row.variant] = values | {
                "APr": 10.0 + shift + verified
            }
            metrics["norcal"] = {"val": {"gamma": 0.5}}
            metrics["limits"] = {"per_class": 121, "short": {"plain": 3}}
            metrics.setdefault("density", {"own": 0.1, "shares": [0.0, 0.1, 1.0], "variants": {}})
            metrics["density"]["variants"][row.variant] = {
                name: [value + g for value, g in zip(curve, (lvis, lvis, verified), strict=True)]
                for name in ("AP", "APr", "APc", "APf")
            }
            write_record(study.paths.metrics(row.run, seed), metrics)
    page = tables.load_json(gather(study, "protocols"))
    assert page["protocols"] == ["lvis", "verified"] and page["limits"]["per_class"] == 121
    assert ["Random", "plain", 3] in page["limits"]["short"]
    text = " ".join(protocols.conclusions(page))
    assert "Under every protocol AP_r rises: MS on Random (+1.0 to +1.0), NorCal on Random" in text
    assert "Under LVIS's rule AP_r rises, but not under every other: CM on Random (+5.0; " in text
    assert "every absent class verified: falls −2.0)" in text
    assert "the gain is gone where 100% of the absent classes are verified, −2.0 with all" in text
    marks = {(row["sampler"], row["method"]): row["cells"][1] for row in protocols.grid(page)}
    assert marks["Random", "CM"] == ("25.0", "±0.0", "↑") and marks["RFS", "plain"][2] == ""
    lines = list(protocols.lines(page))
    assert len(lines) == 10 * 2 * 2 and {len(line) for line in lines} == {len(protocols.COLUMNS)}
    shown = cells.protocols_table(page).html
    assert "is the best under LVIS" in shown and "every absent class verified" in shown
    assert protocols.density_plot(page).png().startswith(b"\x89PNG")
    claims = {claim["id"]: claim for claim in protocols.claim_grid(page)}
    assert set(claims) == {c["id"] for c in page["claims"] if c["kind"] == "direction"}
    assert "pcb-changed" in cells.protocol_claims(page).html


def test_a_claim_is_in_its_own_group_alone():
    found = [
        {"group": key, "ours": {"verdict": "holds"}, "paper": {"verdict": "fails"}, "checks": []}
        for key in ("core", "ablation", "core")
    ]
    groups = {group["id"]: group["claims"] for group in grouped(found)}
    assert groups == {"core": [found[0], found[2]], "ablation": [found[1]]}


def test_an_operand_is_a_value_or_the_difference_of_two():
    assert combined([3.0]) == 3.0 and combined([3.0, 1.0]) == 2.0
    assert combined([3.0, None]) is None


def test_a_check_of_opposed_orders_is_one_difference(tmp_path):
    study = study_in(tmp_path)
    forms = [check.form for claim in study.claims for check in claim.checks]
    found = [check for claim in verdicts(Results(study)) for check in claim["checks"]]
    counted = [c["differences"] for c, form in zip(found, forms, strict=True) if form == "opposed"]
    assert counted and set(counted) == {1}
