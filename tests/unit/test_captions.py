"""The text of a page around its numbers: data, detector, departures, provenance."""

from __future__ import annotations

import pytest

from pcb.reporting import captions
from pcb.study import load_study


def about(scale: str, *backbones: str, **changes) -> dict:
    """A page without runs at a scale."""
    return {
        "target": "table06",
        "title": "The weight α",
        "scale": captions.scale_facts(load_study(scale).scale, backbones or ("r50",)),
        "seeds": [0],
        "comparable": False,
        "datasets": [{"version": "v0.5", "classes": None, "val_images": None}],
        "runs": [],
        **changes,
    }


@pytest.mark.parametrize(
    "scale, backbones, words",
    [
        ("mini", ["r50"], "measured: emoji-LVIS, half-width ResNet-18-FPN, 96 px"),
        ("midi", ["r50"], "measured: emoji-LVIS, ResNet-50-FPN, 533x320"),
        ("lvis", ["r101"], "measured: LVIS, ResNet-101-FPN, 1333x800"),
        (
            "lvis",
            ["r50", "r101", "r50"],
            "measured: LVIS, ResNet-50-FPN and ResNet-101-FPN, 1333x800",
        ),
    ],
)
def test_the_origin_of_our_numbers_names_data_and_detectors(scale, backbones, words):
    assert captions.origin(about(scale, *backbones)) == words


def test_only_directions_are_compared_unless_the_data_are_the_release():
    assert captions.warning(about("mini")) == (
        "Ours were measured on emoji-LVIS with half-width ResNet-18-FPN, 96 px; the paper's on "
        "LVIS with ResNet-50-FPN, 1333x800. Compare directions, not sizes."
    )
    assert captions.warning(about("lvis", comparable=True)) == ""


def test_data_that_are_not_the_release_are_not_called_lvis():
    page = about("lvis")
    page["scale"] |= {"title": "Our pictures", "data": "Our pictures"}
    assert captions.warning(page).startswith(
        "Ours were measured on Our pictures with ResNet-50-FPN, 1333x800 "
        "(`pcb check-data` has not found these data equal to the LVIS release); "
    )
    assert dict(captions.caption(page))["Data"] == (
        "Our pictures, format of LVIS v0.5, not found equal to its release"
    )


def test_departures_are_named_beside_comparable_data():
    page = about("lvis", comparable=True)
    page["scale"]["departures"] = ["Training: batch size 8 (LVIS: 16)"]
    assert captions.warning(page) == (
        "Ours were measured on LVIS with ResNet-50-FPN, 1333x800, "
        "with departures from the paper's recipe."
    )
    assert captions.statements(page)[1] == (
        "The recipe departs from the one for LVIS (Training); the table's page lists how."
    )


def test_the_caption_names_detector_seeds_and_departures():
    caption = dict(captions.caption(about("mini", seeds=[0, 1])))
    assert caption["Data"] == "emoji-LVIS, v0.5 flavour"
    assert caption["Detector"] == (
        "half-width ResNet-18-FPN, 96 px (backbone, FPN and RPN frozen), "
        "where the paper has ResNet-50-FPN, 1333x800"
    )
    assert caption["Seeds"] == "0, 1"
    assert "batch size 8 (LVIS: 16); learning rate drops" in caption["Departures: Training"]
    assert "frozen parts: backbone, FPN and RPN" in caption["Departures: Detector"]
    lvis = dict(captions.caption(about("lvis", comparable=True)))
    assert lvis["Data"] == "LVIS v0.5" and lvis["Detector"] == "ResNet-50-FPN, 1333x800"
    assert lvis["Departures"] == "none: the recipe is the one for LVIS"
    assert lvis["Not in the paper"] == caption["Not in the paper"]
    assert lvis["Not in the paper"].startswith("warm-up of 500 iterations, fp16 and the RFS")


def test_notes_of_a_scale_are_printed():
    page = about("smoke")
    assert "The numbers mean nothing: " in captions.warning(page)
    assert "The numbers mean nothing: " in dict(captions.caption(page))["Notes"]


def test_the_caption_counts_trainings_and_names_their_dates_and_code():
    def run(day: int, commit: str, changed: bool) -> dict:
        git = {"commit": commit * 8, "changed": changed}
        return {"finished": f"2030-01-{day:02}T03:04:05+00:00", "seconds": 40.0, "git": git}

    one = dict(captions.caption(about("mini", runs=[run(2, "ab12", True)])))
    assert one["Runs"] == "1 training finished, 2030-01-02, 40 s in all"
    assert one["Code"] == "git ab12ab1+"
    two = dict(captions.caption(about("mini", runs=[run(2, "ab12", False), run(5, "cd34", False)])))
    assert two["Runs"].startswith("2 trainings finished, 2030-01-02 to 2030-01-05, ")
    assert two["Code"] == "git ab12ab1, cd34cd3"
    none = dict(captions.caption(about("mini")))
    assert none["Runs"] == "none of this page's trainings has been run at this scale"
