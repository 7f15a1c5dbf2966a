"""A mistake in a YAML file ends in one message that names the file, the key and the reason."""

from __future__ import annotations

import re
import shutil
from dataclasses import fields

import pytest

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.registry import SHIPPED
from pcb.study import load_study
from pcb.study.schema import validator

PAPER, MINI = ROOT / "configs/paper.yaml", ROOT / "configs/scale/mini.yaml"


def edited(tmp_path, source, pattern, replacement):
    path = tmp_path / source.name
    text, count = re.subn(pattern, replacement, source.read_text(), count=1, flags=re.M)
    assert count == 1, f"{pattern} is not in {source}"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "pattern, replacement, message",
    [
        (r"^title:", "titel:", "titel: unknown key; did you mean 'title'?"),
        (
            r"^  batch_size: \d+",
            "  batchsize: 8",
            "train.batchsize: unknown key; did you mean 'batch_size'?",
        ),
        (
            r"^  batch_size: \d+",
            "  batch_size: eight",
            "train.batch_size: 'eight' is not of type 'integer'",
        ),
        (
            r"^  lr_drop: .*",
            "  lr_drop: 3e-1",
            "train.lr_drop: '3e-1' is not of type 'number' (YAML reads 3e-1 as text;",
        ),
        (r"^  amp: none", "  amp: fp8", "train.amp: 'fp8' is not one of"),
        (r"^seeds: .*", "seeds: []", "seeds: [] "),
        (
            r"^  rfs_threshold: .*",
            "  rfs_threshold: -1",
            "train.rfs_threshold: -1 is less than or equal to the minimum",
        ),
        (r"^  rfs_threshold: .*\n", "", "train: 'rfs_threshold' is a required property"),
        (r"device: cpu", "device: gpu", "hardware.device: 'gpu' is not one of"),
        (r"^name: mini", "name: mini\nname: mini", "the key 'name' appears twice"),
        (
            r"weights: pcb[^}]*(.*\n[^\0]*)^pretrain: .*\n",
            r"weights: pretrain\1",
            "weights are `pretrain`, but there is no `pretrain` recipe",
        ),
        (
            r"^seeds: .*",
            "seeds: [0]\nschedule: {epochs: 12, milestones: [8, 12], pcb_start_epoch: 9}",
            "the learning rate would drop after epoch 12, but training ends with epoch 12",
        ),
        (
            r"^seeds: .*",
            "seeds: [0]\nschedule: {epochs: 12, milestones: [16, 22], pcb_start_epoch: 9}",
            "epochs before the last; in the paper's proportions: [8, 11]",
        ),
        (
            r"^seeds: .*",
            "seeds: [0]\nschedule: {epochs: 12, milestones: [8, 11], pcb_start_epoch: 13}",
            "schedule.pcb_start_epoch is after the last epoch, 12",
        ),
        (
            r"^  r50: .*\n([^\0]*)",
            r"\1methods: [softmax]\n",
            "no table or figure shows anything: none has a row of the base methods softmax",
        ),
    ],
)
def test_a_scale_s_mistakes(tmp_path, pattern, replacement, message):
    path = edited(tmp_path, MINI, pattern, replacement)
    with pytest.raises(UserError) as error:
        load_study(path)
    assert str(path) in str(error.value) and message in str(error.value) and error.value.fix


@pytest.mark.parametrize(
    "pattern, replacement, message",
    [
        (
            r"^schedule: {epochs",
            "schedule: {epoch",
            "schedule.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            r"loss: eqlv2",
            "loss: eql",
            "experiments.v05_r50_random_eqlv2_plain.loss: 'eql' is not one of",
        ),
        (
            r"paradigm: dsn\b",
            "paradigm: dns",
            "experiments.v05_r50_rfs_softmax_dsn.paradigm: 'dns' is not one of",
        ),
        (
            r"sampler: random, loss: softmax}",
            "sampler: rfs, loss: softmax}",
            "is spelled 'v05_r50_rfs_softmax_plain' by its own factors",
        ),
        (r"trunk: \*A", "trunk: nowhere", "names the trunk 'nowhere', which is not an experiment"),
        (
            r"pcb: {alpha: 0.2}, trunk: \*A",
            "pcb: {alpha: 0.2}, trunk: v05_r50_rfs_softmax_plain",
            "their first epochs differ",
        ),
        (
            r"run: v05_r50_random_softmax_plain}",
            "run: v05_r50}",
            "table01, row 'random' names the run 'v05_r50', which is not an experiment",
        ),
        (r"- {id: random-ms,", "- {id: random,", "table01, row 'random' appears twice"),
        (
            r"\[21.9, 4.6, 21.7, 28.9, 21.9\]",
            "[21.9, 4.6, 21.7, 28.9]",
            "table01, row 'random' has 4 numbers for",
        ),
        (
            r"\[21.9, 4.6, 21.7, 28.9, 21.9\]",
            "[21.9, 4.6, 217, 28.9, 21.9]",
            "tables.table01.rows.0.paper.2: 217 is greater than the maximum",
        ),
        (
            r"labels: \[Random, MS\]",
            "labels: [Random]",
            "table01, row 'random-ms' has 1 labels for",
        ),
        (
            r"variant: ms-val",
            "variant: ms-vall",
            "tables.table01.rows.1.variant: 'ms-vall' is not one of",
        ),
        (
            r"variant: ms-val",
            "variant: step1",
            "shows 'step1' of 'v05_r50_random_softmax_plain', which has one step",
        ),
        (
            r"id: random-ms, base: random,",
            "id: random-ms, base: randm,",
            "table01, row 'random-ms': base 'randm' is not another row of this table",
        ),
        (
            r"id: v05-rfs-pcb, base: v05-rfs,",
            "id: v05-rfs-pcb, base: v1-rfs,",
            "base 'v1-rfs' is not another row of this table on the same data set",
        ),
        (r"main: \[pcb-lifts-ap,", "main: [pcb-lifts,", "verdict.main: no claim 'pcb-lifts'"),
        (
            r"full: table04/pcb-iterative",
            "full: table04/pcb-iter",
            "verdict.gain.full: 'table04/pcb-iter' is no row of a table with AP",
        ),
        (
            r"higher: table01/random-ms",
            "higher: table01/nowhere",
            "claim 'calibration-lifts' names table01/nowhere, AP, which is in no table",
        ),
        (
            r"(metric: AP), higher: table01/random-ms",
            r"metric: PwB, higher: table01/random-ms",
            "table01/random-ms, PwB, which is in no table",
        ),
        (r"^  table01:", "  tabel01:", "tables.tabel01: unknown key; keys have the form ^(table"),
        (
            r"(v05_r50_random_softmax_plain): {(.*)}",
            r"\1_space-full: {\2, options: {space: full}}",
            "option space: 'full' is the default",
        ),
        (
            r"(v05_r50_random_softmax_plain): {(.*)}",
            r"\1_space-fore: {\2, options: {space: fore}}",
            "option space: 'fore' is not allowed",
        ),
        (
            r"(v05_r50_random_eqlv2_plain): {(.*)}",
            r"\1_literal-1: {\2, options: {literal: 1}}",
            "option literal: 1 is not allowed",
        ),
        (
            r"(v05_r50_random_eqlv2_plain): {(.*)}",
            r"\1_scope-all: {\2, options: {scope: all}}",
            "'eqlv2' has no option 'scope'",
        ),
        (
            r"(v05_r50_random_bags_plain): {(.*)}",
            r"\1_pcb-a0.4-g0.99: {\2, pcb: {alpha: 0.4}}",
            "the loss 'bags' cannot be combined with PCB",
        ),
        (
            r"v05_r50_random_bags_plain: {(.*)}",
            r"v05_r50_random_bags_iterative: {\1, paradigm: iterative}",
            "the loss 'bags' does not support several steps",
        ),
    ],
)
def test_the_paper_s_mistakes(tmp_path, pattern, replacement, message):
    path = edited(tmp_path, PAPER, pattern, replacement)
    with pytest.raises(UserError) as error:
        load_study("mini", paper=path)
    assert str(path) in str(error.value) and message in str(error.value) and error.value.fix


def test_the_schema_allows_what_the_registry_lists():
    study, allowed = load_study("mini"), validator("paper").schema["$defs"]
    assert allowed["loss"]["enum"] == list(SHIPPED.losses)
    assert allowed["paradigm"]["enum"] == list(SHIPPED.paradigms)
    regressions = allowed["experiment"]["properties"]["regression"]["enum"]
    assert {e.regression for e in study.experiments.values()} == set(regressions)
    variants = {v for run in study.experiments for v in study.variants(run)}
    not_in_the_paper = {"norcal-positive"}  # an option for studies of one's own
    assert variants | not_in_the_paper == set(allowed["variant"]["enum"])


def test_every_loss_and_paradigm_of_the_registry_is_in_the_paper():
    experiments = load_study("mini").experiments.values()
    assert {e.loss for e in experiments} == set(SHIPPED.losses)
    assert {e.paradigm for e in experiments} == set(SHIPPED.paradigms)


def test_the_schema_knows_every_key_of_the_recipe_of_emoji_lvis():
    from pcb.synthetic.generate import Recipe

    assert set(validator("scale").schema["properties"]["synthetic"]["properties"]) == {
        field.name for field in fields(Recipe)
    }


def test_a_scale_that_does_not_exist():
    with pytest.raises(UserError, match="choose one of: lvis, midi, mini, smoke"):
        load_study("huge")


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"seed": [1]}, "seed: unknown key; did you mean 'seeds'?"),
        ({"seeds": "all"}, "seeds: 'all' is not of type 'array'"),
    ],
)
def test_overrides_are_checked_like_the_file(overrides, message):
    with pytest.raises(UserError, match=f"with {next(iter(overrides))} overridden") as error:
        load_study("mini", overrides=overrides)
    assert message in str(error.value)


def test_all_mistakes_are_named_at_once(tmp_path):
    path = tmp_path / "mini.yaml"
    path.write_text(
        MINI.read_text().replace("title:", "titel:", 1).replace("device: cpu", "device: gpu")
    )
    with pytest.raises(UserError) as error:
        load_study(path)
    assert all(
        key in str(error.value)
        for key in ("titel", "'title' is a required property", "hardware.device")
    )


@pytest.mark.parametrize(
    "text, message",
    [("{", "is not valid YAML"), ("- a", "holds list, not a"), ("", "holds NoneType, not a")],
)
def test_a_file_that_is_no_mapping(tmp_path, text, message):
    path = tmp_path / "scale.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_study(path)


@pytest.mark.parametrize("text", ["", '{"scale": ', "[]", "{}", '{"scale": {}}'])
def test_a_torn_study_json(tmp_path, text):
    path = tmp_path / "study.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_study(path)


def test_a_generated_data_set_needs_its_recipe(tmp_path):
    path = tmp_path / "lvis.yaml"
    shutil.copy(ROOT / "configs/scale/lvis.yaml", path)
    path.write_text(
        path.read_text().replace(
            "data/lvis_v1/lvis_v1_train.json", '"{results}/data/v1/train.json"'
        )
    )
    with pytest.raises(UserError, match="there is no `synthetic` recipe"):
        load_study(path)
