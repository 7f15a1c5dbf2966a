"""The registry agrees with the classes that it names, with MMDetection and with docs/methods.md."""

from __future__ import annotations

import inspect

import pytest
import torch
from mmdet.registry import MODELS

import pcb.mmdet
from pcb import registry
from pcb.calibration import Statistics
from pcb.errors import UserError
from pcb.files import ROOT
from pcb.losses import BAGSLoss, Regulariser

C = 3
LOSSES = registry.LOSSES
OPTIONS = [(name, key) for name, entry in LOSSES.items() for key in entry.options]
ENTRIES = [*LOSSES.values(), *registry.PARADIGMS.values(), *registry.CALIBRATIONS.values()]


def build(name: str, **options):
    counts = {"instance_counts": [1, 20, 300]} if "instance_counts" in LOSSES[name].takes else {}
    return LOSSES[name].load()(C, **counts, **options)


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor, those that it passes on in `**kwargs` included."""
    out: dict[str, inspect.Parameter] = {}
    for base in (*cls.__mro__, Regulariser):
        if base is not torch.nn.Module:
            out = {**inspect.signature(base.__init__).parameters, **out}
    return out


@pytest.mark.parametrize("name, key", OPTIONS)
def test_every_value_of_an_option_constructs_the_loss(name, key):
    for value in LOSSES[name].options[key].values:
        assert isinstance(build(name, **{key: value}), LOSSES[name].load())


@pytest.mark.parametrize("name, key", OPTIONS)
def test_a_wrong_value_of_an_option_is_refused(name, key):
    with pytest.raises(UserError, match=rf"{key}='wrong'\n  fix: choose one of"):
        build(name, **{key: "wrong"})


@pytest.mark.parametrize("name, key", OPTIONS)
def test_the_first_value_of_an_option_is_the_default(name, key):
    first, *_ = LOSSES[name].options[key].values
    assert parameters(LOSSES[name].load())[key].default == first


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
def test_constructors_take_what_the_registry_lists(entry):
    if entry.cls:
        assert set(entry.takes) <= parameters(entry.load()).keys()


def test_a_loss_is_of_one_of_the_kinds_that_norcal_knows():
    statistics = {"matrix": torch.eye(C), "image_counts": torch.ones(C)}
    for entry in LOSSES.values():
        kind = entry.load().score_kind
        for calibration in registry.CALIBRATIONS.values():
            gamma = calibration.gammas[0] if calibration.gammas else None
            built = calibration.load().from_statistics(
                Statistics(**statistics, classifier=kind), gamma
            )
            assert built(torch.full((1, C + 1), 1 / (C + 1))).shape == (1, C + 1)


def test_mmdetection_knows_every_class():
    classes = [entry.class_name for entry in (*LOSSES.values(), *registry.PARADIGMS.values())]
    for name in filter(None, [*classes, "LOCERoIHead"]):
        assert name in MODELS.module_dict


def test_registering_a_class_again_changes_nothing():
    pcb.mmdet.register(BAGSLoss)
    assert MODELS.module_dict["BAGSLoss"] is BAGSLoss


def test_another_class_of_a_registered_name_is_refused():
    other = type("BAGSLoss", (), {"__module__": "my_losses"})
    with pytest.raises(UserError, match=r"(?s)BAGSLoss, from pcb.losses.bags.*my_losses.*rename"):
        pcb.mmdet.register(other)


def test_the_page_on_the_methods_shows_the_registry():
    page = (ROOT / "docs/methods.md").read_text()
    shown = page.partition("<!-- registry -->\n")[2].partition("<!-- /registry -->")[0]
    assert shown == registry.markdown()
