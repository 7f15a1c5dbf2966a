"""The page of a run: curves of its trunk and its own, numbers beside the base's, classes."""

import json
import re

import pytest
from fabricate import CLASSES, RFS_PCB, SOFTMAX, fabricate, study_in

from pcb.errors import UserError
from pcb.files import write_text
from pcb.reporting import curves
from pcb.reporting.results import Results
from pcb.reporting.site import chart, data, run_pages
from pcb.study.records import read_record, write_record

RFS = "v05_r50_rfs_softmax_plain"


def write_log(path, epochs, **values):
    """A log with two records an epoch of ten iterations."""
    lines = []
    for epoch in epochs:
        for within in (5, 10):
            record = {
                "stage": 0,
                "epoch": epoch,
                "iteration": 10 * (epoch - 1) + within,
                "lr": 0.02,
                "loss": 3.0 / epoch,
                "losses": {"loss_cls": 2.0 / epoch, "loss_bbox": 1.0 / epoch},
                "seconds_per_iteration": 0.5,
                "memory_mib": {"process": 700},
                **values,
            }
            if within == 10:
                record["pwb"] = {"0.9": 2.0 - epoch / 100, "0.99": 9.0}
            lines.append(json.dumps(record))
    write_text(path, "\n".join(lines) + "\n")


@pytest.fixture
def study(tmp_path):
    """RFS without and with PCB at two seeds, with logs of their trunks."""
    study = study_in(tmp_path, seeds=(0, 1))
    for seed in study.seeds:
        for run, ap in ((RFS, 20.0), (RFS_PCB, 22.0)):
            fabricate(study, run, seed, AP=ap + seed, PwB=2.0)
            record = read_record(study.paths.train(run, seed))
            record |= {"seconds": 40.0, "peak_memory_mib": {"process": 500 + 100 * (ap > 20)}}
            write_record(study.paths.train(run, seed), record)
            trunk = study.experiments[run].trunk
            of_trunk = {"fingerprint": study.fingerprint(trunk, seed), "seconds": 60.0}
            of_trunk["sha256"] = f"trunk of {trunk}"
            write_record(study.paths.trunk(trunk, seed), of_trunk)
            write_log(study.paths.training_log(trunk, seed, trunk=True), range(1, 17))
            slower = 0.5 + 0.25 * (run == RFS_PCB)
            log = study.paths.training_log(run, seed)
            write_log(log, range(17, 25), seconds_per_iteration=slower)
    return study


def page(study, run):
    run_pages.write(results := Results(study), data.runs(results))
    return study.paths.run_page(run).read_text(encoding="utf-8")


def cells(html, row):
    """The texts of a row of a table, by the text of its head."""
    found = re.search(
        rf'<tr[^>]*>\s*<th class="label" scope="row">{row}</th>(.*?)</tr>', html, re.S
    )
    return [re.sub("<[^>]+>", "", c).strip() for c in re.findall(r"<td.*?</td>", found[1], re.S)]


def test_curves_begin_with_the_trunk_s_epochs(study):
    found = curves.read_curves(study, RFS_PCB, 0)
    assert found.epochs == [k / 2 for k in range(1, 49)] and found.second_stage is None
    assert found.momentum == "0.9"  # γ = 0.99 at this scale
    assert found.points("pwb") == [(float(e), pytest.approx(2 - e / 100)) for e in range(1, 25)]
    assert found.parts == ["loss_bbox", "loss_cls"] and found["loss_cls"][0] == 2.0


def test_a_long_log_becomes_a_short_curve(study):
    log = study.paths.training_log(SOFTMAX, 0)
    write_log(log, range(1, 301))
    points = curves.read_curves(study, SOFTMAX, 0).points("loss")
    assert len(points) == curves.MOST and points[-1][0] == 300
    assert points[0] == (2.0, pytest.approx((3 + 3 + 1.5 + 1.5) / 4))


def test_a_log_that_was_cut_off_is_read_to_its_end(study):
    log = study.paths.training_log(RFS_PCB, 0)
    text = log.read_text()
    write_text(log, text + '{"stage": 0, "epo\n[]\n{"stage": 0, "epoch": null, "iteration": 3}\n')
    assert curves.read_curves(study, RFS_PCB, 0).epochs[-1] == 24
    log.unlink()
    assert curves.read_curves(study, RFS_PCB, 0) is None


def test_numbers_stand_beside_the_base_s_with_their_interval(study):
    html = page(study, RFS_PCB)
    assert cells(html, "AP")[:6] == ["22.00", "23.00", "22.50", "0.71", "20.50", "+2.00"]
    assert f'<a href="{RFS}.html">' in html and "<details><summary>Variant step1" in html
    assert cells(html, "training, shared epochs included") == ["2 min", "2 min", "1.00 ×"]
    own = "an iteration, in the epochs of its own"
    assert cells(html, own) == ["750 ms", "500 ms", "1.50 ×"]
    assert cells(html, "peak memory of the process") == ["629 MB", "524 MB", "1.20 ×"]


def test_charts_say_what_they_show(study):
    html = page(study, RFS_PCB)
    labels = re.findall(r'<svg class="chart"[^>]* aria-label="([^"]+)"', html)
    assert labels[0].startswith("Loss over 24 epochs: seed 0 goes from 3 to 0.125; seed 1")
    (pwb,) = [label for label in labels if label.startswith("PwB of the moving matrix (γ = 0.9)")]
    assert "seed 0 goes from 1.99 to 1.76" in pwb and "base goes from" in pwb
    assert html.count("PCB may start") == 3 and "Log of seed 1: 24 epochs" in html


def test_classes_have_their_curves_where_the_scores_have_them(study):
    assert "Scored before precision-recall curves were kept" in page(study, RFS_PCB)
    for seed in study.seeds:
        metrics = read_record(study.paths.metrics(RFS_PCB, seed))
        curve = [1000 - 50 * k for k in range(21)]
        metrics["classes"]["plain"] = [{**c, "precision": curve} for c in CLASSES]
        write_record(study.paths.metrics(RFS_PCB, seed), metrics)
    html = page(study, RFS_PCB)
    assert 'points="0,0 4,1 8,2 13,4' in html and "mean precision: rare 50 %" in html
    (found,) = run_pages.classes(Results(study), RFS_PCB, RFS)[3:4]
    assert (found["name"], found["AP"], found["before"], found["gain"]) == ("class 3", 15, 15, 0)


def test_a_run_without_results_has_a_page_and_an_old_page_goes(study):
    old = study.paths.run_page("v05_r50_rfs_another")
    write_text(old, "of another study")
    html = page(study, SOFTMAX)
    assert "Not run at this scale yet" in html and "<svg" not in html
    assert "Resolved configuration" in html and "sampler: random" in html
    assert not old.exists()


def test_training_csv_has_a_line_for_each_epoch(study):
    lines = data.training_csv(Results(study)).splitlines()
    assert len(lines) == 1 + 2 * 2 * 24
    assert lines[0].startswith("run,seed,stage,epoch,iteration,lr,loss,loss_bbox,loss_cls,PwB")
    assert any(line.startswith(f"{RFS_PCB},1,0,24,240,0.02,0.125,") for line in lines)


def test_a_broken_record_is_an_error_not_a_page(study):
    study.paths.train(RFS_PCB, 0).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        page(study, RFS_PCB)


@pytest.mark.parametrize(
    ("end", "count", "expected"),
    [
        (24, 6, [0, 5, 10, 15, 20]),
        (0.02, 4, [0, 0.005, 0.01, 0.015, 0.02]),
        (100, 4, [0, 25, 50, 75, 100]),
    ],
)
def test_ticks_are_round(end, count, expected):
    assert chart.ticks(end, count) == pytest.approx(expected)


def test_a_chart_of_nothing_or_of_one_point_is_drawn():
    assert "polyline" not in chart.chart([chart.Line("a", [], "s0")], "nothing", "epoch")
    svg = chart.chart([chart.Line("<a>", [(1.0, 0.0)], "s0")], "a & b", "epoch")
    assert "polyline" in svg and "&lt;a&gt;: 0" in svg and "a &amp; b" in svg
