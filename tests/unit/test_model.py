"""From an experiment's factors to classes: the registry, and the model that it makes."""

from __future__ import annotations

import dataclasses
import json

import pytest
from test_heads import EXPERIMENTS

from pcb.errors import UserError
from pcb.losses.base import ClassifierLoss
from pcb.registry import LOSSES, SHIPPED
from pcb.study import PCB, Experiment, load_study
from pcb.training.model import check_arguments, model_overrides

PAPER = load_study("mini").experiments
BEST = PAPER["v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"]


def roi_head(experiment: Experiment, **kwargs) -> dict:
    arguments = {"num_classes": 3, "momenta": [0.5], "instance_counts": [1, 2, 3], **kwargs}
    return model_overrides(experiment, **arguments)["roi_head"]


def test_the_tests_of_heads_cover_every_combination_of_the_paper():
    assert {(e.loss, e.paradigm) for e in PAPER.values()} == set(EXPERIMENTS)


@pytest.mark.parametrize("run", PAPER)
def test_every_experiment_has_a_model(run):
    experiment = PAPER[run]
    head = roi_head(experiment)
    loss = head["bbox_head"]["loss_cls"]
    assert loss.get("alpha", 0) == (experiment.pcb.alpha if experiment.pcb else 0)
    steps = 1 if experiment.paradigm == "plain" else 3
    assert loss.get("num_steps", 1) == head.get("num_steps", 1) == steps
    assert head.get("regression", "last") == experiment.regression


def test_what_an_experiment_states_reaches_the_model():
    head = roi_head(
        BEST,
        momenta=[0.9, 0.99],
        active=0.99,
        absent=[2],
        start_epoch=5,
        hidden=7,
        identity_start=True,
    )
    assert head["type"] == "IterativeRoIHead"
    assert (head["hidden"], head["identity_start"], head["layer_norm"]) == (7, True, False)
    assert head["step_weights"] == [0.2, 0.2, 0.6]
    assert head["bbox_head"]["num_classes"] == head["mask_head"]["num_classes"] == 3
    assert head["bbox_head"]["loss_cls"] == {
        "_delete_": True,
        "type": "PCBCrossEntropyLoss",
        "num_classes": 3,
        "alpha": 0.4,
        "momentum": [0.9, 0.99],
        "active": 0.99,
        "num_steps": 3,
        "start_epoch": 5,
        "absent": [2],
        "soft_labels": False,
    }


def test_logits_are_normalised_for_eqlv2_only():
    """The paper normalises the logits that enter MLP_cls with EQL v2 (§4.1)."""
    heads = {e.loss: roi_head(e) for e in PAPER.values() if e.paradigm == "iterative"}
    assert {loss: head["layer_norm"] for loss, head in heads.items()} == {
        "softmax": False,
        "eqlv2": True,
        "seesaw": False,
    }


def test_bags_and_loce_have_a_second_stage():
    def stages(loss):
        return [(s.loss, s.epochs) for s in SHIPPED.stages(loss)]

    assert stages("softmax") == [("softmax", None)]
    assert stages("bags") == [("softmax", None), ("bags", 12)]
    assert stages("loce") == [("softmax", None), ("loce", 6)]
    loce = PAPER["v05_r50_random_loce_plain"]
    first, last = (roi_head(loce, stage=stage) for stage in (0, 1))
    assert first["bbox_head"]["loss_cls"]["type"] == "PCBCrossEntropyLoss"
    assert last["type"] == "LOCERoIHead"
    normed = {"num_classes": 3, "predictor_cfg": {"type": "NormedConv2d"}}
    assert first["mask_head"] == last["mask_head"] == normed


OPTIONS = [
    (loss, option, value)
    for loss, entry in LOSSES.items()
    for option, choices in entry.options.items()
    for value in choices.values[1:]
]


@pytest.fixture(scope="module")
def with_every_option(tmp_path_factory):
    """A study of one's own, whose experiments choose each option that is not a default."""
    path = tmp_path_factory.mktemp("overlay") / "options.yaml"
    experiments = {}
    for loss, option, value in OPTIONS:
        spec = {"dataset": "v05", "backbone": "r50", "sampler": "rfs", "loss": loss}
        spec["options"] = {option: value}
        experiments[Experiment.read("", spec).computed_id] = spec
    path.write_text(json.dumps({"experiments": experiments}))
    return load_study("smoke", path)


@pytest.mark.parametrize("loss, option, value", OPTIONS)
def test_every_option_of_the_paper_s_text_reaches_the_loss(with_every_option, loss, option, value):
    spelled = f"v05_r50_rfs_{loss}_plain_{option}-{value}".lower()
    head = roi_head(with_every_option.experiments[spelled])
    arguments = {k: v for k, v in head["bbox_head"]["loss_cls"].items() if k[0] != "_"}
    arguments.pop("type")
    assert arguments[option] == value
    built = LOSSES[loss].load()(**arguments)
    holder = built
    if option in ("gate", "update"):
        holder = built.pcb
    elif option == "normalise":
        holder = built.confusion
    elif option == "start":  # the only value that is not the default is "first"
        holder, option, value = getattr(built, "soft_labels", built), "start_epoch", 1
    assert getattr(holder, option) == value


def test_a_loss_without_steps_refuses_a_paradigm():
    with pytest.raises(UserError, match="plain"):
        roi_head(dataclasses.replace(BEST, loss="ols", pcb=None))


def test_ids_and_factors_name_the_options():
    experiment = dataclasses.replace(BEST, pcb=PCB(0.2), options={"space": "fg", "update": "last"})
    assert experiment.computed_id == (
        "v05_r50_rfs_softmax_iterative_pcb-a0.2-g0.99_space-fg_update-last"
    )
    assert experiment.factors["options"] == {"space": "fg", "update": "last"}
    assert "options" not in BEST.factors


def test_only_options_that_act_from_the_start_divide_a_trunk():
    def early(**options):
        return dataclasses.replace(BEST, options=options).early_factors(SHIPPED)

    assert early(space="fg") == early()
    assert early(update="last") != early()


class OwnLoss(ClassifierLoss):
    def __init__(self, num_classes, instance_counts, tau=1.0):
        super().__init__(num_classes)


@pytest.mark.parametrize(
    ("takes", "options", "message"),
    [
        (("instance_counts", "hidden"), {}, r"losses\.own\.takes names 'hidden'"),
        (("instance_counts",), {"rho": 1.0}, r"losses\.own\.options names 'rho'"),
        ((), {"tau": 0.5}, r"OwnLoss needs 'instance_counts', which losses\.own does not name"),
    ],
)
def test_arguments_that_a_loss_does_not_have_are_refused(takes, options, message):
    check_arguments(OwnLoss, "own", ("instance_counts",), {"tau": 0.5})
    with pytest.raises(UserError, match=message):
        check_arguments(OwnLoss, "own", takes, options)
