"""Own data in COCO's format from files to a table: odd category ids, restarting image ids, a crowd.

A base method and the same with PCB are trained for two epochs of a few images.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from own_data import IDS, NAMES, own_dataset, own_scale

from pcb.data.lvis.check import check
from pcb.evaluation.score import score
from pcb.inference.infer import infer
from pcb.reporting import tables
from pcb.reporting.gather import collect
from pcb.reporting.results import Results
from pcb.study import load_study
from pcb.training.pretrain import pretrain
from pcb.training.train import train

SCHEDULE = {"epochs": 2, "milestones": [1], "pcb_start_epoch": 2}


def one_class(path: str) -> None:
    """Keep one class of an annotation file."""
    content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    content["categories"] = [c for c in content["categories"] if c["id"] == IDS[0]]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == IDS[0]]
    Path(path).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("classes", [3, 1])
def test_own_data_give_a_table(tmp_path, classes):
    dataset = own_dataset(tmp_path)
    if classes == 1:
        one_class(dataset["train"])
        one_class(dataset["val"])
    path = own_scale(tmp_path / "own.yaml", dataset, methods=["softmax"], schedule=SCHEDULE)
    study = load_study(path)
    study.scale["train"].update(batch_size=4, warmup_iters=1)
    for backbone in study.scale["backbones"].values():
        backbone["weights"] = "random"
    check(study, "mine")
    pretrain(study, "r50")
    runs = study.runs("table02")
    assert len(runs) == 2
    for run in runs:
        train(study, run, 0)
        infer(study, run, 0)
        metrics = score(study, run, 0)
        found = [(c["id"], c["name"], c["frequency"]) for c in metrics["classes"]["plain"]]
        expected = [(IDS[1], NAMES[1], "c"), (IDS[2], NAMES[2], "r"), (IDS[0], NAMES[0], "f")]
        assert found == (expected if classes == 3 else expected[2:])
        assert set(metrics["protocols"]) == {"lvis", "fixed", "loose"}
        of_plain = metrics["variants"]["plain"]
        under = metrics["protocols"]["lvis"]["plain"]
        assert under["AP"] == pytest.approx(of_plain["AP"], abs=0.05)
        assert (of_plain["APr"] is None) == (classes == 1)
    table = collect(Results(study), "table02")
    cells = {(c.block, c.column): str(c) for c in tables.grid(table)[1]}
    assert cells[tables.OURS, "AP"] not in (tables.NOT_RUN, tables.NO_VALUE)
    assert (cells[tables.OURS, "APr"] == tables.NO_VALUE) == (classes == 1)
    assert tables.html(table) and tables.markdown(table) and tables.latex(table)
