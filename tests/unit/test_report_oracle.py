"""The section on calibration with scored and with other images, from fabricated records."""

import json
from statistics import fmean, stdev

import pytest
from fabricate import SOFTMAX, evaluated, study_in

from pcb.reporting import oracle
from pcb.reporting.notebook import cells
from pcb.reporting.results import Results
from pcb.reporting.site.data import ORACLE_COLUMNS, oracle_lines
from pcb.study.records import write_record
from pcb.study.variants import ORACLE_PARTS

COLUMNS = ("plain", "ms-own", "cm-own", "ms-other", "cm-other")


def entry(values, columns=COLUMNS, **about):
    """An entry of oracle.json whose metrics are all the same; None stands for no such class."""
    metrics = {
        column: dict.fromkeys(oracle.METRICS, value)
        for column, value in zip(columns, values, strict=True)
    }
    return {**about, "all": metrics, "known": metrics}


def part(of, images, plain, **changes):
    """A part with AP of `plain` and changes of the other columns, in the order of `COLUMNS`."""
    gains = [changes.get(c.replace("-", "_"), 0.0) for c in COLUMNS]
    return entry([plain + g for g in gains], of=of, images=images, proposals=images / 3)


def fabricate(study, seed=0, parts=(), crossfit=((20.0, 21.0, 23.0),), shift=0.0):
    """Write an oracle.json: AP 20 on val, MS 22, CM 24, and the given parts."""
    whole = entry([20 + shift, 22, 24], ("plain", "ms-own", "cm-own"), of=1, images=24, proposals=9)
    record = {
        **evaluated(study, SOFTMAX, seed),
        "parts_of_val": {str(k): number for k, number in ORACLE_PARTS.items()},
        "parts": [whole, *parts],
        "crossfit": [entry(values, ("plain", "ms", "cm"), of=2) for values in crossfit]
        + [entry((20.0, 25.0, 26.0), ("plain", "ms", "cm"), of=8)],
    }
    write_record(study.paths.oracle(SOFTMAX, seed), record)


def collected(study):
    return json.loads(json.dumps(oracle.collect(Results(study))))


def halves(cm_own=(3.0, 3.2), cm_other=(1.0, 1.2)):
    return [
        part(2, 12, plain, cm_own=own, cm_other=other, ms_own=1.0, ms_other=1.0)
        for plain, own, other in zip((20.0, 25.0), cm_own, cm_other, strict=True)
    ]


def test_without_records_nothing_is_shown(tmp_path):
    assert collected(study_in(tmp_path)) == []
    assert "not run" in repr(cells.oracle_table([]))
    assert oracle.conclusions([]) == [] and oracle.plot([]).png()


def test_the_table_has_the_oracle_and_the_mean_cross_fit_over_seeds(tmp_path):
    study = study_in(tmp_path, seeds=(0, 1))
    fabricate(study, 0, halves(), crossfit=((20, 21, 23), (20, 22, 25)))
    fabricate(study, 1, halves(), crossfit=((20, 21, 23), (20, 21, 23)), shift=1)
    (found,) = collected(study)
    assert found["title"] == "Random" and found["seeds"] == [0, 1]
    ap = {label: values["AP"] for label, values in found["table"]}
    assert ap == {
        "no calibration": [20, 21],
        "MS, the scored images (oracle)": [22, 22],
        "MS, the other half": [21.5, 21],
        "MS, the other 7 of 8 parts": [25, 25],
        "CM, the scored images (oracle)": [24, 24],
        "CM, the other half": [24, 23],
        "CM, the other 7 of 8 parts": [26, 26],
    }
    rows = oracle.grid([found])
    assert rows[0]["cells"][0] == ("20.5", "±0.7") and rows[-2]["cells"][0] == ("23.5", "±0.7")
    assert "<td" in cells.oracle_table([found]).html


def test_gains_are_paired_over_parts_with_their_standard_error(tmp_path):
    study = study_in(tmp_path)
    few = [part(8, 3, plain, cm_own=own) for plain, own in ((10.0, 5), (30.0, 6), (50.0, 10))]
    without = entry([None] * 5, of=8, images=3, proposals=1)  # such as AP_r without a rare class
    fabricate(study, 0, [*halves(), *few, without])
    sizes = collected(study)[0]["sizes"]
    assert [(s["of"], s["images"], s["parts"]) for s in sizes] == [(8, 3, 4), (2, 12, 2)]
    mean, error, parts = sizes[0]["all"]["cm-own - plain"]["AP"]
    assert (mean, parts) == (7, 3)
    assert error == pytest.approx(stdev([5, 6, 10]) / 3**0.5)


def test_parts_are_averaged_over_seeds_before_their_spread_is_taken(tmp_path):
    study = study_in(tmp_path, seeds=(0, 1))
    fabricate(study, 0, halves(cm_own=(2.0, 4.0)))
    fabricate(study, 1, halves(cm_own=(4.0, 6.0)))
    mean, error, parts = collected(study)[0]["sizes"][0]["known"]["cm-own - plain"]["AP"]
    assert (mean, parts) == (fmean([3, 5]), 2)
    assert error == pytest.approx(stdev([3, 5]) / 2**0.5)


@pytest.mark.parametrize(
    "own, other, expected",
    [
        ((3.0, 3.2), (1.0, 1.2), "65% of the gain, +2.0 ± 0.0, is memory of the scored images"),
        ((3.0, 3.2), (-1.0, 1.2), "all of the gain is memory of the scored images"),
        ((1.0, 1.2), (1.0, 1.2), "no memory of the scored images is found"),
        ((-3.0, 3.2), (-1.0, 1.2), "no gain even with statistics of the scored images"),
    ],
)
def test_conclusions_follow_from_twice_the_standard_error(tmp_path, own, other, expected):
    study = study_in(tmp_path)
    fabricate(study, 0, halves(own, other))
    summary, _, of_cm, lead = oracle.conclusions(collected(study))
    assert of_cm.startswith("Random, CM: on halves of val") and expected in of_cm
    assert ("is not memory of the scored images alone" in summary) == (other[0] > 0)
    assert "CM against MS" in lead


def test_the_smallest_parts_tell_whether_memory_grows(tmp_path):
    study = study_in(tmp_path)
    few = [part(8, 3, 10.0, cm_own=own, cm_other=-1.0) for own in (9.0, 9.5)]
    fabricate(study, 0, [*halves(), *few])
    of_ms, of_cm = oracle.conclusions(collected(study))[1:3]
    assert "On parts of 3 images, a median of 1 matched proposals a class" in of_cm
    assert of_cm.endswith("by +10.2 ± 0.2: more memory with fewer images.")
    assert of_ms.endswith("no clear growth of memory with fewer images.")


def test_the_file_of_the_site_has_a_line_for_each_number(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, 0, halves())
    lines = [dict(zip(ORACLE_COLUMNS, line, strict=True)) for line in oracle_lines(Results(study))]
    columns = 3 + 2 * len(COLUMNS) + 2 * 3  # all of val, two halves, two cross-fits
    assert len(lines) == columns * len(oracle.METRICS) * 2
    (found,) = (
        line
        for line in lines
        if (line["entry"], line["of"], line["classes"]) == ("crossfit", 8, "all")
        and (line["column"], line["metric"]) == ("cm", "AP")
    )
    assert found["value"] == 26 and found["run"] == SOFTMAX


def test_the_plot_draws_every_size(tmp_path):
    study = study_in(tmp_path)
    fabricate(study, 0, [*halves(), *(part(8, 3, 10.0, cm_own=own) for own in (9.0, 9.5))])
    figure = oracle.plot(collected(study)).figure
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Random", "Random"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["3", "12"]
