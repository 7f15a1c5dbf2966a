"""From an experiment's factors to classes: every line of the paper has a model, and two methods have a second stage."""

from __future__ import annotations

import dataclasses

import pytest
from pcb.methods import model_overrides, stages
from test_heads import EXPERIMENTS

from pcb.errors import UserError
from pcb.study import load_study

PAPER = load_study("mini").experiments
PCB = PAPER["v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"]


def test_the_tests_cover_every_combination_of_the_paper():
    assert {(e.loss, e.paradigm) for e in PAPER.values()} == set(EXPERIMENTS)


@pytest.mark.parametrize("run", PAPER)
def test_every_experiment_has_a_model(run):
    experiment = PAPER[run]
    head = model_overrides(experiment, num_classes=3, momenta=[0.5], instance_counts=[1, 2, 3])[
        "roi_head"
    ]
    loss = head["bbox_head"]["loss_cls"]
    assert loss.get("alpha", 0) == (experiment.pcb.alpha if experiment.pcb else 0)
    assert (
        loss.get("num_steps", 1)
        == head.get("num_steps", 1)
        == (1 if experiment.paradigm == "plain" else 3)
    )
    assert head.get("regression", "last") == experiment.regression


def test_what_an_experiment_says_reaches_the_model():
    head = model_overrides(
        PCB,
        num_classes=3,
        momenta=[0.9, 0.99],
        active=0.99,
        absent=[2],
        start_epoch=5,
        hidden=7,
        identity_start=True,
    )["roi_head"]
    assert (head["type"], head["hidden"], head["identity_start"], head["layer_norm"]) == (
        "IterativeRoIHead",
        7,
        True,
        False,
    )
    assert (
        head["step_weights"] == [0.2, 0.2, 0.6]
        and head["bbox_head"]["num_classes"] == head["mask_head"]["num_classes"] == 3
    )
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


def test_bags_and_loce_have_a_second_stage():
    bags, loce = (PAPER[f"v05_r50_random_{loss}_plain"] for loss in ("bags", "loce"))
    assert [s.loss for s in stages(PCB)] == ["softmax"]
    assert [(s.loss, s.epochs) for s in stages(bags)] == [("softmax", None), ("bags", 12)]
    assert [(s.loss, s.epochs) for s in stages(loce)] == [("softmax", None), ("loce", 6)]
    first, last = (model_overrides(loce, num_classes=3, stage=s)["roi_head"] for s in (0, 1))
    assert (
        first["bbox_head"]["loss_cls"]["type"] == "PCBCrossEntropyLoss"
        and last["type"] == "LOCERoIHead"
    )
    assert (
        first["mask_head"]
        == last["mask_head"]
        == {"num_classes": 3, "predictor_cfg": {"type": "NormedConv2d"}}
    )


def test_a_loss_without_steps_refuses_a_paradigm():
    with pytest.raises(UserError, match="plain"):
        model_overrides(dataclasses.replace(PCB, loss="ols", pcb=None), num_classes=3)
