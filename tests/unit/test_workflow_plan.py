"""`pcb plan`: hours are checked against a sum by hand, budgets against the rules they state."""

from __future__ import annotations

import json
import shutil
from math import ceil

import pytest
from fabricate import evaluated

from pcb import cli
from pcb.errors import UserError
from pcb.planning.costs import Costs
from pcb.planning.plan import as_data, budget_hours, by_table, plan
from pcb.planning.timings import Timings, method, setting
from pcb.planning.workload import evaluated_images, images_per_epoch
from pcb.study import load_study
from pcb.study.records import write_record

ASSUMED = {"iteration": 0.5, "image": 0.1}
PLAIN, ITERATIVE = "v05_r50_random_softmax_plain", "v05_r50_rfs_softmax_iterative"


@pytest.fixture
def study(tmp_path):
    return load_study("mini", overrides={"results": str(tmp_path)})


@pytest.fixture
def lvis(tmp_path):
    return load_study("lvis", overrides={"results": str(tmp_path)})


def costs(study, *targets, assumed=ASSUMED):
    return Costs(study, Timings.of(study, assumed), targets)


def record(study, run, seed=0, **values):
    """Write the record of a finished training, with its detections and metrics."""
    fingerprint = {"fingerprint": study.fingerprint(run, seed)}
    path = study.paths.train(run, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = study.paths.work(study.fingerprint(run, seed)) / "final.pth"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_bytes(bytes(1000))
    write_record(
        path,
        {
            "epochs": 24,
            "iterations": 600,
            "seconds": 60.0,
            "checkpoint": str(checkpoint),
            "sha256": evaluated(study, run)["checkpoint"],
            **fingerprint,
            **values,
        },
    )
    scored = {"variants": {key: {} for key in study.variants(run)}}
    write_record(study.paths.metrics(run, seed), evaluated(study, run, seed) | scored)
    for split in ("val", "dev") if "norcal" in study.variants(run) else ("val",):
        write_record(
            study.paths.detections(run, seed, split),
            {"images": 240, "seconds": 12.0, "folder": "d", **evaluated(study, run, seed, split)},
        )


# Hours --------------------------------------------------------------------------------------------


def test_the_whole_paper_costs_834_epochs_of_1074_and_as_many_hours_as_a_sum_by_hand(lvis):
    """Eight GPUs for each iteration; each image takes one of them."""
    whole = costs(lvis)
    train, val = {"v05": 57_263, "v1": 100_170}, {"v05": 5_000, "v1": 19_809}
    iterations = sum(
        job.epochs * ceil(train[lvis.experiments[job.run].dataset] / 16) for job in whole.jobs
    )
    detected = sum(val[lvis.experiments[run].dataset] for run in lvis.experiments)
    # Table 1: two runs by val's own matrix. Table 4: one by train's. Table 8: three choose γ, and
    # one more on the page of protocols.
    again = 2 * 5_000 + 57_263 + 4 * 5_000
    assert iterations > 834 * 3000
    hours = (8 * 0.5 * iterations + 0.1 * (detected + again)) / 3600
    assert whole.hours(whole.items) == pytest.approx(hours)
    assert as_data(whole)["epochs"] == {"left": 834, "all": 834, "without_trunks": 1074}
    assert "1,032 = 43 x 24" in plan(whole) and "240 saved" in plan(whole)


def test_the_gpus_of_a_job_share_out_the_images(lvis):
    item = costs(lvis).items["infer", PLAIN, 0]
    assert item.devices == 8 and item.seconds == pytest.approx(0.1 * 3 * 5_000 / 8)


def test_several_processes_detect_for_the_seconds_of_their_manifest(study):
    record(study, PLAIN)  # 240 images of val in 12 s, as many of dev
    for split in ("val", "dev"):
        path = study.paths.detections(PLAIN, 0, split)
        write_record(path, {**json.loads(path.read_text()), "processes": 4})
    assert Timings.of(study).get("image", "v05_r50", "softmax_plain") == 4 * 0.05


def test_what_tables_share_is_paid_once(study):
    whole, rows = costs(study), by_table(costs(study))
    assert sum(row["adds"]["epochs"] for row in rows) == 834
    assert sum(row["alone"]["epochs"] for row in rows) > 834
    assert sum(row["adds"]["hours"] for row in rows) == pytest.approx(whole.hours(whole.items))
    assert sum(row["trainings"] - row["shared"] for row in rows) == 43
    (alone,) = by_table(costs(study, "table06"))
    assert alone["alone"]["epochs"] == alone["adds"]["epochs"] == 6 * 8 + 16


def test_what_is_done_is_not_paid_again(study):
    before = costs(study, "table01").remaining(costs(study, "table01").items)
    record(study, PLAIN)
    after = costs(study, "table01").remaining(costs(study, "table01").items)
    assert set(before) - set(after) == {("train", PLAIN, 0), ("infer", PLAIN, 0)}


def test_a_changed_configuration_is_paid_again(study):
    record(study, PLAIN, fingerprint="another")
    assert not costs(study, "figure1").items["train", PLAIN, 0].done


def test_checked_data_give_how_often_rfs_repeats_images(study):
    rfs, random = study.experiments[ITERATIVE], study.experiments[PLAIN]
    assert images_per_epoch(study, rfs) == (200, False)
    assert images_per_epoch(study, random) == (200, True)
    assert costs(study).inexact() == ["v05", "v1"]
    path = study.paths.data_check("v05")
    path.parent.mkdir(parents=True)
    factors = {"images": 190, "epoch": 270}
    write_record(path, {"repeat_factors": factors, "splits": {"val": {"images": 240}}})
    assert images_per_epoch(study, rfs) == (270, True)
    assert images_per_epoch(study, random) == (190, True)
    assert costs(study).inexact() == ["v1"]


def test_images_are_counted_as_often_as_the_detector_sees_them(study, lvis):
    assert evaluated_images(study, PLAIN) == 240 + 240  # val, and dev for NorCal
    assert evaluated_images(lvis, "v1_r50_random_softmax_plain") == 19_809
    run = "v05_r50_rfs_softmax_plain"
    # val, dev for NorCal, train for its matrix
    assert evaluated_images(study, run) == 240 + 240 + 200
    # val twice, for it is too large to keep in memory; NorCal's subset of train; train
    assert evaluated_images(lvis, run) == 2 * 5_000 + 5_000 + 57_263


# Where the timings are from ----------------------------------------------------------------------


def stored_timings(study, timings):
    study.paths.root.mkdir(parents=True)
    record = {"timings": timings, "date": "2026-01-01", "machine": "m", "timed": True}
    write_record(study.paths.timings, record)


def test_finished_trainings_come_before_timings_json_and_assumptions_before_both(study):
    iteration = {"softmax_plain": 9.0, "softmax_iterative": 3.0}
    image = {"softmax_plain": 9.0}
    stored_timings(study, {"iteration": {"v05_r50": iteration}, "image": {"v05_r50": image}})
    assert Timings.of(study).get("iteration", "v05_r50", "softmax_plain") == 9.0
    record(study, PLAIN)  # 600 iterations in 60 s, 240 images in 12 s
    timings = Timings.of(study)
    assert timings.get("iteration", "v05_r50", "softmax_plain") == 0.1
    assert timings.get("image", "v05_r50", "softmax_plain") == 0.05
    assert timings.get("iteration", "v05_r50", "softmax_iterative") == 3.0
    assert timings.get("final", "v05_r50", "softmax_plain") == 1000
    assert len(timings.sources) == 2
    assert Timings.of(study, ASSUMED).get("iteration", "v05_r50", "softmax_plain") == 0.5


def test_a_branch_s_seconds_are_those_of_its_own_epochs(study):
    record(study, ITERATIVE, seconds=20.0)  # 8 of 24 epochs: 200 of 600 iterations
    assert Timings.of(study).get("iteration", "v05_r50", "softmax_iterative") == 0.1


def test_what_was_not_measured_is_scaled_by_what_was():
    timings = Timings({"iteration": {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0}}}, [])
    assert timings.get("iteration", "b", "y") == 6.0
    assert timings.get("iteration", "b", "z") == 3.0
    assert timings.get("iteration", "c", "x") == 2.0
    assert timings.get("image", "a", "x") is None


def test_a_method_is_its_loss_and_paradigm_not_its_sampler_or_alpha(study):
    kinds = {(setting(e), method(e)) for e in study.experiments.values()}
    assert ("v05_r50", "softmax_iterative-each") in kinds and len(kinds) < 30
    bags = study.experiments["v05_r50_random_bags_plain"]
    first_stage = study.registry.stages(bags.loss)[0]
    assert method(bags, first_stage.loss) == "softmax_plain"


def test_a_plan_without_times_begins_with_how_to_measure_them(study):
    assert plan(costs(study)).startswith("run ")
    text = plan(costs(study, assumed=None), options="--scale lvis")
    assert "`pcb plan --measure --scale lvis`" in text.splitlines()[0]


def test_without_timings_hours_are_unknown_and_epochs_are_not(study):
    text = plan(costs(study, assumed=None))
    assert "834 to train of 834" in text and "pcb plan --measure" in text
    with pytest.raises(UserError, match="not known"):
        plan(costs(study, assumed=None), budget=3.0)
    with pytest.raises(UserError, match="not known"):
        as_data(costs(study, assumed=None), budget=3.0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"timings": 3}', '{"timings": {}}'])
def test_a_torn_timings_json_counts_as_none(study, content):
    study.paths.root.mkdir(parents=True)
    study.paths.timings.write_text(content)
    assert Timings.of(study).sources == []


# Budgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cheapest", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_a_budget_is_never_exceeded_and_leaves_nothing_that_would_fit(study, share, cheapest):
    whole = costs(study)
    budget = share * whole.hours(whole.items) * (1 + 1e-9)
    chosen, rest = whole.affordable(budget, cheapest)
    spent = whole.hours({key for target, _ in chosen for key in whole.needs(target)})
    assert spent <= budget and sum(hours for _, hours in chosen) == pytest.approx(spent)
    assert all(spent + hours > budget for _, hours in rest)
    assert sorted(target for target, _ in chosen + rest) == sorted(study.tables)
    assert share < 1 or not rest


def test_the_cheapest_table_is_chosen_first(study):
    whole = costs(study)
    alone = {target: whole.hours(whole.needs(target)) for target in study.tables}
    chosen, _ = whole.affordable(min(alone.values()) * 1.01, cheapest=True)
    assert chosen[0][0] == min(alone, key=alone.get) == "figure1"


@pytest.mark.parametrize(
    ("text", "value"), [("100h", 100), ("3d", 72), ("90min", 1.5), ("2", 2), ("36s", 0.01)]
)
def test_lengths_of_time(text, value):
    assert budget_hours(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["soon", "-1h", "h", "nanh", "inf"])
def test_a_text_that_is_not_a_length_of_time_is_refused(text):
    with pytest.raises(UserError, match="not a length of time"):
        budget_hours(text)


# What is printed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["mini", "lvis"])
def test_the_plan_fits_100_columns(scale, tmp_path):
    study = load_study(scale, overrides={"results": str(tmp_path)})
    text = plan(costs(study), gpus=8, budget=50.0)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("trunk of v05_r50_rfs_softmax_iterative") == 1


def test_a_disk_that_is_too_small_is_reported(study, monkeypatch):
    sizes = {"final": 1e6, "checkpoint": 1e6, "detections": 1e3}
    assert "NOT ENOUGH" not in plan(costs(study, assumed={**ASSUMED, **sizes}))
    full = shutil._ntuple_diskusage(10**9, 10**9, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert "NOT ENOUGH" in plan(costs(study, assumed={**ASSUMED, **sizes}))


def test_the_command_prints_json_and_text(capsys, tmp_path):
    command = ["plan", "table06", "table04", "--scale", "lvis", "--results", str(tmp_path)]
    command += ["--seconds-per-iteration", "0.5", "--images-per-second", "10"]
    command += ["--gpus", "8", "--budget", "10h", "--cheapest"]
    assert cli.main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["device"] == "GPU"
    assert data["budget"] == {"hours": 80.0, "fits": [], "does_not_fit": ["table06", "table04"]}
    assert cli.main([*command, "--budget", "30d"]) == 0
    text = capsys.readouterr().out
    assert "assumed, not measured: 0.5 s an iteration, 10 images a second" in text


def test_the_plan_ends_with_the_command_for_what_the_budget_pays(study):
    two = costs(study, "table01", "table06")
    text = plan(two, budget=two.hours(two.needs("table01")), options="--scale x.yaml")
    assert text.splitlines()[-1].strip() == "pcb reproduce --scale x.yaml table01"
