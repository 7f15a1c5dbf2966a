"""configs/paper.yaml is the paper: ids, rows, published numbers, trunks and fingerprints."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.planning.jobs import jobs
from pcb.planning.status import status
from pcb.study import METRICS, Study, canonical, load_study
from pcb.study.current import lacking
from pcb.study.load import notice_of_old_results, notice_of_unused_gpus, save_study_json, study_json
from pcb.study.records import write_record
from pcb.study.study import FORMAT

SPLITS = ("APr", "APc", "APf")
BEST = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"  # the paper's default


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study("mini")


@pytest.fixture
def changed(study):
    """Change one value of the resolved study: changed(["scale", "train", "lr"], 1.0)."""

    def change(keys, value):
        resolved = copy.deepcopy(study.resolved)
        *path, last = keys
        parent = resolved
        for key in path:
            parent = parent[key]
        parent[last] = value
        return Study(resolved)

    return change


def rows(study: Study):
    return [(table, row) for table in study.tables.values() for row in table.rows]


# Experiments --------------------------------------------------------------------------------------
def test_the_paper_has_43_trainings_whose_ids_follow_from_their_factors(study):
    assert len(study.experiments) == 43
    assert all(e.computed_id == key == e.id for key, e in study.experiments.items())
    assert len({canonical(e.factors) for e in study.experiments.values()}) == 43


def test_every_row_resolves_and_every_experiment_is_used(study):
    assert {row.run for _, row in rows(study)} == set(study.experiments)
    assert set(study.runs()) == set(study.experiments)


def test_the_33_trainings_of_the_paper_and_the_10_behind_copied_rows(study):
    own = {row.run for table, row in rows(study) if not row.copied_from}
    assert len(own) == 33 and len(set(study.experiments) - own) == 10


def test_the_paper_s_settings(study):
    """§4.1: α by loss, EQL v2 with random sampling, Seesaw with RFS, R-101 in Table 3 only."""
    headline = {
        row.id: study.experiments[row.run]
        for row in study.tables["table02"].rows
        if row.labels["PCB"] == "✓"
    }
    assert {e.loss: e.pcb.alpha for e in headline.values()} == {
        "softmax": 0.4,
        "eqlv2": 0.2,
        "seesaw": 0.05,
    }
    assert {e.pcb.gamma for e in headline.values()} == {0.99}
    assert {e.paradigm for e in headline.values()} == {"iterative"}
    samplers = {loss: set() for loss in ("eqlv2", "seesaw")}
    for e in study.experiments.values():
        samplers.setdefault(e.loss, set()).add(e.sampler)
    assert samplers["eqlv2"] == {"random"} and samplers["seesaw"] == {"rfs"}
    r101 = {row.run for _, row in rows(study) if "_r101_" in row.run}
    assert r101 == {run for run in study.tables["table03"].runs if "_r101_" in run}
    assert study.schedule == {"epochs": 24, "milestones": [16, 22], "pcb_start_epoch": 17}
    assert study.trunk_epochs == 16


# Tables -------------------------------------------------------------------------------------------
def test_tables_are_the_paper_s_in_its_order_with_equal_labels(study):
    assert list(study.tables) == [f"table{i:02d}" for i in range(1, 12)] + ["figure1"]
    assert [len(t.rows) for t in study.tables.values()] == [6, 16, 14, 9, 3, 6, 6, 9, 4, 6, 3, 1]
    for table in study.tables.values():
        assert {tuple(row.labels) for row in table.rows} == {table.labels}
        assert set(table.columns) <= set(METRICS)
        labels = {tuple(row.labels.values()) for row in table.rows}
        assert len(labels) == len(table.rows)


def test_only_what_the_paper_prints_as_a_dash_lacks_a_number(study):
    """Table 2 has no PwB in three rows, Table 3 no AP50 and AP75 in seven; Figure 1 has none."""
    missing = [
        (t.id, r.id, m)
        for t, r in rows(study)
        for m in t.columns
        if m not in r.paper and t.id != "figure1"
    ]
    assert [m for t, _, m in missing if t == "table02"] == ["PwB"] * 3
    assert [m for t, _, m in missing if t == "table03"].count("AP50") == 7
    assert len(missing) == 3 + 14


def test_equal_runs_have_equal_published_numbers_wherever_they_are_printed(study):
    printed = {}
    for table, row in rows(study):
        for metric, value in row.paper.items():
            first = printed.setdefault((row.run, row.variant, metric), (value, table.id))
            assert first[0] == value, (row.run, row.variant, metric, first, table.id)


def published_splits(study, dataset):
    """Published (AP, APr, APc, APf) of a data set, each run and variant once."""
    return {
        (row.run, row.variant): [row.paper[m] for m in ("AP", *SPLITS)]
        for _, row in rows(study)
        if row.run.startswith(f"{dataset}_") and "AP" in row.paper
    }


def residuals(numbers, outliers=()):
    """AP minus its least-squares mix of APr, APc and APf; `outliers` are not fitted."""
    values = np.array([v for key, v in numbers.items() if key not in outliers])
    mix = np.linalg.lstsq(values[:, 1:], values[:, 0], rcond=None)[0]
    return mix, {key: v[0] - float(np.dot(v[1:], mix)) for key, v in numbers.items()}


def test_published_ap_is_the_mix_of_its_splits(study):
    """AP is the mean over classes, so a fixed mix of its splits: a wrong digit stands out.

    One row of the paper itself does: EQL v2 is printed as 26.9, its own splits give 26.66.
    """
    eql = ("v05_r50_random_eqlv2_plain", "plain")
    mix, left = residuals(published_splits(study, "v05"), outliers=[eql])
    assert len(left) == 41 and mix == pytest.approx([0.145, 0.482, 0.372], abs=0.002)
    assert left.pop(eql) == pytest.approx(0.24, abs=0.02)
    assert max(map(abs, left.values())) < 0.065
    _, left = residuals(published_splits(study, "v1"))
    assert len(left) == 14 and max(map(abs, left.values())) < 0.075


def test_the_linear_check_catches_a_slip(study):
    numbers = published_splits(study, "v05")
    numbers[BEST, "plain"][1] += 1.0  # 22.8 for 21.8
    _, left = residuals(numbers, outliers=[("v05_r50_random_eqlv2_plain", "plain")])
    assert abs(left[BEST, "plain"]) > 0.1


# Trunks and plans ---------------------------------------------------------------------------------
def test_trunks_share_what_happens_before_pcb_and_save_240_of_1074_epochs(study):
    trunks = study.trunks
    assert {key: len(members) for key, members in trunks.items()} == {
        "v05_r50_rfs_softmax_plain": 8,
        "v05_r50_rfs_softmax_iterative": 8,
        "v05_r50_rfs_softmax_dsn": 2,
    }
    for trunk, members in trunks.items():
        early = [study.experiments[m].early_factors(study.registry) for m in members]
        assert members[0] == trunk
        assert all(factors == study.experiments[trunk].factors for factors in early)
    all_jobs = jobs(study)
    assert len(all_jobs) == 43 + 3
    second_stages = 2 * 12 + 3 * 6  # BAGS on v0.5 and v1.0; LOCE also on v1.0
    assert 43 * 24 + second_stages == 1074
    assert sum(job.epochs for job in all_jobs) == 1074 - (7 + 7 + 1) * 16 == 834


def test_experiments_outside_a_trunk_could_not_share_one(study):
    early = {}
    for e in study.experiments.values():
        early.setdefault(canonical(e.early_factors(study.registry)), set()).add(e.trunk)
    assert all(len(trunks) == 1 for trunks in early.values())


def test_state_follows_records_of_this_configuration_only(tmp_path):
    study = load_study("mini", overrides={"results": str(tmp_path)})
    trunk = "v05_r50_rfs_softmax_iterative"

    def states():
        return {("trunk " * job.trunk) + job.run: job.state for job in jobs(study, "table06")}

    def record(path, fingerprint, **content):
        write_record(path, {"fingerprint": fingerprint, **content})

    assert set(states().values()) == {"to run"}
    work = study.paths.work(study.fingerprint(trunk, 0))
    work.mkdir(parents=True)
    (work / "iter00000010.0123456789abcdef.pth").touch()
    assert states()[f"trunk {trunk}"] == "partial" and states()[trunk] == "to run"
    record(study.paths.trunk(trunk, 0), study.fingerprint(trunk, 0))
    assert states()[f"trunk {trunk}"] == "done" and states()[trunk] == "partial"
    record(study.paths.train(BEST, 0), "another")
    assert states()[BEST] == "to run"
    origin = {"trunk": {"run": trunk, "sha256": "of the trunk"}, "sha256": "of the run"}
    record(study.paths.train(BEST, 0), study.fingerprint(BEST, 0), **origin)
    assert states()[BEST] == "to run"  # it branched from another trunk than there is now
    record(study.paths.trunk(trunk, 0), study.fingerprint(trunk, 0), sha256="of the trunk")
    assert states()[BEST] == "trained"
    variants = {key: {} for key in study.variants(BEST)}
    some = {"plain": variants.pop("plain")}
    evaluation = {"evaluation": study.evaluation(BEST, 0), "checkpoint": "of the run"}

    def metrics(**content):
        path = study.paths.metrics(BEST, 0)
        record(path, study.fingerprint(BEST, 0), **evaluation | content)

    metrics(variants=some)
    assert states()[BEST] == "trained"
    metrics(variants=some | variants, evaluation="another threshold")
    assert states()[BEST] == "trained"
    metrics(variants=some | variants, checkpoint="other weights")
    assert states()[BEST] == "trained"
    metrics(variants=some | variants)
    assert states()[BEST] == "done"
    line = next(line for line in status(study).splitlines() if line.startswith("table06"))
    assert line.split() == ["table06", "6", "1", "0", "1", "4"]


def test_a_second_stage_counts_in_its_own_training_alone(study):
    epochs = {job.run: job.epochs for job in jobs(study, "table03")}
    assert epochs["v05_r50_random_bags_plain"] == 24 + 12
    assert epochs["v05_r50_random_loce_plain"] == 24 + 6
    longer = {run for run, n in epochs.items() if n != 24}
    assert longer == {run for run in epochs if "bags" in run or "loce" in run}


# Jobs ---------------------------------------------------------------------------------------------
def test_momenta_scale_the_memory_of_the_matrix(study, changed):
    lvis = load_study("lvis")
    assert lvis.scale["pcb"]["ema_memory_scale"] == 1
    assert lvis.momenta("v05_r50_rfs_softmax_iterative") == [0.9, 0.99, 0.999]
    assert lvis.momenta(BEST) == [0.99] and lvis.momenta("v05_r50_random_softmax_plain") == []
    tenth = changed(["scale", "pcb", "ema_memory_scale"], 0.1)
    assert tenth.momenta("v05_r50_rfs_softmax_iterative") == [0.0, 0.9, 0.99]
    assert 1 / (1 - tenth.scaled_gamma(0.999)) == pytest.approx(0.1 / (1 - 0.999))
    assert changed(["scale", "pcb", "ema_memory_scale"], 0.01).scaled_gamma(0.9) == 0.0


def test_variants_come_from_rows_plain_first(study):
    assert study.variants(BEST) == ["plain", "step1", "step2"]
    assert study.variants("v05_r50_rfs_softmax_plain") == [
        "plain",
        "cm-train",
        "cm-val",
        "ms-val",
        "norcal",
    ]


def every_job(study):
    return {
        (kind, run): canonical(job(run, 0))
        for run in study.experiments
        for kind, job in (("train", study.train_job), ("eval", study.eval_job))
    }


@pytest.mark.parametrize(
    "keys, value",
    [
        (["scale", "title"], "x"),
        (["scale", "notes"], ["x"]),
        (["scale", "hardware", "device"], "cuda"),
        (["scale", "seeds"], [0, 1, 2]),
        (["tables", "table06", "title"], "x"),
        (["tables", "table06", "claim"], "x"),
        (["tables", "table06", "labels"], ["x"]),
        (["tables", "table06", "rows", 2, "labels"], ["x"]),
        (["tables", "table06", "rows", 2, "paper"], [1.0] * 5),
        (["tables", "table06", "plots"], []),
        (["claims"], []),
    ],
)
def test_words_published_numbers_and_hardware_change_no_job(study, changed, keys, value):
    assert every_job(changed(keys, value)) == every_job(study)


@pytest.mark.parametrize(
    "keys, value",
    [
        (["scale", "train", "lr"], 1.0),
        (["scale", "pcb", "hidden"], 7),
        (["scale", "synthetic", "seed"], 99),
        (["schedule", "epochs"], 25),
    ],
)
def test_the_recipe_changes_every_training(study, changed, keys, value):
    before, after = every_job(study), every_job(changed(keys, value))
    assert all(before[key] != after[key] for key in before)


def test_a_pretraining_s_recipe_changes_what_starts_from_it(study, changed):
    before = every_job(study)
    after = every_job(changed(["scale", "backbones", "r50", "weights"], "pretrain"))
    unchanged = {run for kind, run in before if before[kind, run] == after[kind, run]}
    assert unchanged == {run for run, e in study.experiments.items() if e.backbone == "r101"}


def test_test_settings_change_evaluations_alone(study, changed):
    before, after = every_job(study), every_job(changed(["scale", "test", "max_per_image"], 7))
    assert {kind for kind, run in before if before[kind, run] != after[kind, run]} == {"eval"}


def test_a_new_variant_evaluates_its_run_alone(study, changed):
    """Table 5 asks for step 1 of γ = 0.9: results without it lack something, but stay valid."""
    run = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.9"
    after = changed(["tables", "table05", "rows", 0, "variant"], "step1")
    assert every_job(after) == every_job(study)
    assert lacking(after, {"variants": study.variants(run)}, run) == ["step1"]
    assert not lacking(study, {"variants": after.variants(run)}, run)


def test_norcal_is_evaluated_on_the_runs_that_table_8_and_the_page_of_protocols_list(study):
    asked = {run for run in study.experiments if "norcal" in study.variants(run)}
    assert asked == {
        "v05_r50_random_softmax_plain",
        "v05_r50_rfs_softmax_plain",
        "v05_r50_random_eqlv2_plain",
        "v05_r50_rfs_seesaw_plain",
    }


def test_a_trunk_keeps_soft_labels_where_online_label_smoothing_branches_from_it(study, changed):
    assert {run for run in study.experiments if study.train_job(run, 0).get("soft_labels")} == {
        "v05_r50_rfs_softmax_plain"
    }
    alone = changed(["experiments", "v05_r50_rfs_ols_plain", "trunk"], None)
    assert not any(alone.keeps_soft_labels(run) for run in alone.experiments)


def test_a_new_gamma_on_a_trunk_retrains_the_trunk_and_its_branches(study, changed):
    """The trunk has to keep that γ's matrix too. A new α needs nothing of the trunk."""

    def add(alpha, gamma):
        resolved = copy.deepcopy(study.resolved)
        spec = {**resolved["experiments"][BEST], "pcb": {"alpha": alpha, "gamma": gamma}}
        resolved["experiments"][f"v05_r50_rfs_softmax_iterative_pcb-a{alpha:g}-g{gamma:g}"] = spec
        before, after = every_job(study), every_job(Study(resolved))
        return {
            run for kind, run in before if kind == "train" and before[kind, run] != after[kind, run]
        }

    assert add(0.5, 0.99) == set()
    assert add(0.4, 0.995) == set(study.trunks["v05_r50_rfs_softmax_iterative"])


def test_seeds_are_different_jobs_and_hashes_are_distinct(study):
    assert study.fingerprint(BEST, 0) != study.fingerprint(BEST, 1)
    prints = [
        study.fingerprint(run, seed) for run, seed in itertools.product(study.experiments, (0, 1))
    ]
    assert len(set(prints)) == len(prints)


def test_moving_the_results_folder_moves_generated_data_and_retrains_nothing(study, tmp_path):
    moved = load_study("mini", overrides={"results": str(tmp_path), "seeds": [3, 4]})
    assert moved.seeds == (3, 4) and moved.paths.root == tmp_path / "mini"
    assert moved.scale["datasets"]["v05"]["train"] == str(moved.paths.data("v05") / "train.json")
    assert every_job(moved) == every_job(study)


@pytest.mark.parametrize("scale", ["mini", "smoke", "lvis"])
def test_study_json_holds_the_whole_study_for_any_order_of_its_keys(scale, tmp_path):
    study = load_study(scale)
    path = tmp_path / "study.json"
    path.write_text(json.dumps(study.resolved, sort_keys=True))
    again = load_study(path)
    assert again.resolved == study.resolved and every_job(again) == every_job(study)
    assert list(again.tables.values()) == list(study.tables.values())
    assert again.claims == study.claims and again.runs() == study.runs()
    labels = [[list(row.labels) for _, row in rows(s)] for s in (again, study)]
    assert labels[0] == labels[1]


def test_a_checked_study_json_is_the_study_and_an_edited_one_is_checked_again(study, tmp_path):
    path = tmp_path / "study.json"
    content = json.loads(json.dumps(study_json(study)))
    path.write_text(json.dumps(content))
    assert load_study(path).resolved == study.resolved
    content["scale"]["train"]["lr"] = "fast"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"train\.lr"):
        load_study(path)


@pytest.mark.parametrize("torn", ['{"scale": ', "[]", "null", "{}", "[" * 100_000])
def test_a_torn_study_json_is_written_again(torn, tmp_path):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    save_study_json(study)
    whole = study.paths.study.read_bytes()
    study.paths.study.write_text(torn)
    save_study_json(study)
    assert study.paths.study.read_bytes() == whole
    before = study.paths.study.stat().st_mtime_ns
    save_study_json(study)
    assert study.paths.study.stat().st_mtime_ns == before


def test_a_study_json_of_an_earlier_version_is_recognised(study, tmp_path):
    path = tmp_path / "study.json"
    before = {k: v for k, v in study_json(study).items() if k != "format"}
    path.write_text(json.dumps(before))
    with pytest.raises(UserError, match=r"another version of the pipeline \(format 1"):
        load_study(path)


def test_a_results_folder_of_an_earlier_version_is_named_as_such(tmp_path):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    assert notice_of_old_results(study) is None
    study.paths.study.parent.mkdir()
    content = study_json(study)
    study.paths.study.write_text(json.dumps(content))
    assert notice_of_old_results(study) is None
    study.paths.study.write_text(json.dumps(content | {"format": FORMAT - 1}))
    notice = notice_of_old_results(study)
    assert notice and str(study.paths.root) in notice and "they count as not run" in notice


def test_records_of_an_earlier_version_count_as_not_run(study):
    """The format enters every fingerprint, so no record made before it can be current."""
    assert all(study.train_job(run, 0)["format"] == FORMAT for run in study.experiments)


def test_the_study_loads_without_torch_and_pandas():
    code = (
        "import sys; absent = ['torch', 'pandas', 'numpy', 'mmdet', 'mmengine'];"
        "sys.modules.update(dict.fromkeys(absent));"
        "from pcb.planning.plan import plan, Costs;"
        "from pcb.planning.timings import Timings; from pcb.study import load_study;"
        "study = load_study('smoke'); print(plan(Costs(study, Timings.of(study))).count('v1_r50'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(ROOT), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 9


@pytest.mark.parametrize(
    ("device", "gpus", "noted"), [("cpu", 0, False), ("cpu", 2, True), ("cuda", 2, False)]
)
def test_gpus_that_a_job_would_hold_unused_are_noted(device, gpus, noted):
    study = load_study("mini", overrides={"hardware": {"device": device, "gpus_per_job": gpus}})
    notice = notice_of_unused_gpus(study)
    assert bool(notice) == noted
    if notice:
        assert "holds 2 GPUs" in notice and "set `gpus_per_job: 0`, or `device: cuda`" in notice
