"""`pcb export`: MMDetection loads the detector alone and predicts what the pipeline detects.

Every exported model is compared on real files with `forward` and `detect` of the same run.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from pycocotools import mask as coco_masks
from training import BRANCH, PLAIN, scenes, tiny_study, without_trunk

from pcb import cli
from pcb.errors import UserError
from pcb.inference import infer
from pcb.inference.calibrations import score_functions
from pcb.inference.export import export
from pcb.inference.forward import detect, forward, original_boxes, segment
from pcb.study.load import save_study_json
from pcb.study.records import write_record
from pcb.training import build
from pcb.training.checkpoint import save_hashed
from pcb.training.train import train

# Run -> classification loss of the exported config, and whether that is MMDetection's alone.
EXPORTED = {
    "v05_r50_random_softmax_plain": ("CrossEntropyLoss", True),
    "v05_r50_rfs_softmax_plain_pcb-a0.2-g0.99": ("PCBCrossEntropyLoss", False),
    "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99": ("PCBCrossEntropyLoss", False),
    "v05_r50_rfs_seesaw_plain": ("SeesawLoss", True),
    "v05_r50_rfs_seesaw_iterative_pcb-a0.05-g0.99": ("PCBSeesawLoss", False),
    "v05_r50_random_eqlv2_plain": ("PCBEQLv2Loss", False),
    "v05_r50_random_bags_plain": ("BAGSLoss", False),
    "v05_r50_random_loce_plain": ("CrossEntropyLoss", True),
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def study(datasets, tmp_path_factory):
    return tiny_study(tmp_path_factory.mktemp("results"), datasets)


def pretend_trained(study, run):
    """The record and checkpoint of a training whose random weights detect much."""
    torch.manual_seed(1)
    model = build.detector(study, run)
    predictor = model.roi_head.bbox_head.fc_cls
    torch.nn.init.normal_(predictor.weight, std=0.5)
    weights = {
        key: value for key, value in model.state_dict().items() if build.FEATURE_MEMORY not in key
    }
    path = save_hashed(
        study.paths.work(study.fingerprint(run, 0)),
        "final",
        {"state_dict": weights, "meta": {"classes": 60}},
    )
    record = {
        "fingerprint": study.fingerprint(run, 0),
        "checkpoint": str(path),
        "sha256": infer.checkpoint.sha256(path),
    }
    write_record(study.paths.train(run, 0), record)


def ours(study, run, channels_last):
    """Scores, labels, boxes and masks that the pipeline detects, of each validation image."""
    study.scale["hardware"]["channels_last"] = channels_last
    record = infer.trained(study, run, 0)
    model = build.detector(study, run, record["checkpoint"])
    dataset = infer.test_set(study, run, "val")
    for item in (dataset[i] for i in range(len(dataset))):
        images = forward(model, [item])
        selection = detect(model, images[0], score_functions(model, ["plain"]))
        ((_, rles),) = segment(model, images, [selection])
        size = list(images[0].meta["ori_shape"][:2])
        masks = coco_masks.decode([{"size": size, "counts": counts} for counts in rles])
        yield (
            images[0].meta["img_path"],
            selection.scores["plain"],
            selection.labels,
            original_boxes(images[0], selection),
            masks.transpose(2, 0, 1).astype(bool),
        )


def assert_equal_predictions(study, run, folder, channels_last=False):
    """In the same memory format both compute the same numbers; only the order may differ.

    Tolerances are those of float32: 1e-6 of a score, 1e-3 pixels of a box. Masks are pasted by two
    implementations, so that a pixel on the edge may differ: 1 in 1,000.
    """
    model = init_detector(str(folder / "config.py"), str(folder / "weights.pth"), device="cpu")
    count = 0
    for path, scores, labels, boxes, masks in ours(study, run, channels_last):
        found = inference_detector(model, path).pred_instances
        at = matching((scores, labels, boxes), (found.scores, found.labels, found.bboxes))
        np.testing.assert_array_equal(labels, found.labels[at])
        np.testing.assert_allclose(scores, found.scores[at], atol=1e-6)
        np.testing.assert_allclose(boxes, found.bboxes[at], atol=1e-3)
        assert (masks != found.masks[at].numpy()).mean() < 1e-3
        count += len(labels)
    assert count > 10
    return model


def matching(mine, theirs):
    """For each of my detections the nearest of theirs, each of which is taken once."""
    distance = sum(
        scale * np.abs(a.numpy().reshape(len(a), 1, -1) - b.numpy().reshape(1, len(b), -1)).max(-1)
        for scale, a, b in zip((1e3, 1e6, 1), mine, theirs, strict=True)
    )
    nearest = distance.argmin(axis=1)
    assert sorted(nearest) == list(range(len(theirs[0])))
    return nearest


@pytest.mark.parametrize("run", EXPORTED)
def test_mmdetection_predicts_the_same(study, run, tmp_path):
    loss, alone = EXPORTED[run]
    pretend_trained(study, run)
    export(study, run, 0, tmp_path)
    model = assert_equal_predictions(study, run, tmp_path)
    assert type(model.roi_head.bbox_head.loss_cls).__name__ == loss
    text = (tmp_path / "config.py").read_text()
    ours = [m for m in model.modules() if type(m).__module__.startswith("pcb.")]
    assert alone == (not ours) == ("pcb.mmdet" not in text)
    assert "needs MMDetection 3" in (tmp_path / "README.md").read_text().replace("Needs", "needs")
    assert ("package `pcb`" in (tmp_path / "README.md").read_text()) != alone


def test_a_trained_detector_in_the_memory_format_of_its_training(study, tmp_path):
    """Convolutions with channels innermost add in another order: the last digits may differ."""
    train(without_trunk(study, BRANCH), BRANCH, 0)
    export(study, BRANCH, 0, tmp_path)
    model = assert_equal_predictions(study, BRANCH, tmp_path)
    for path, scores, *_ in ours(study, BRANCH, channels_last=True):
        found = inference_detector(model, path).pred_instances.scores
        best = scores.sort(descending=True).values
        np.testing.assert_allclose(best[:10], found[:10], atol=1e-4)
    matrix = model.roi_head.bbox_head.loss_cls.confusion.matrix
    assert matrix.shape == (60, 60) and matrix.sum() > 0, "M goes with the detector"
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert state.keys() == {"meta", "state_dict"}, "no state of an optimiser"


def test_class_names_and_colours_come_with_it(study, tmp_path):
    pretend_trained(study, PLAIN)
    export(study, PLAIN, 0, tmp_path)
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert not [key for key in state["state_dict"] if "loss_cls" in key]
    classes = json.loads((tmp_path / "classes.json").read_text())
    names = [entry["name"] for entry in classes]
    assert names == list(state["meta"]["dataset_meta"]["classes"])
    assert [entry["label"] for entry in classes] == list(range(60))
    assert len(set(map(tuple, state["meta"]["dataset_meta"]["palette"]))) == 60


def test_mmdetections_inferencer_draws_it(study, datasets, tmp_path):
    pretend_trained(study, PLAIN)
    export(study, PLAIN, 0, tmp_path / "out")
    inferencer = DetInferencer(
        str(tmp_path / "out/config.py"), str(tmp_path / "out/weights.pth"), device="cpu"
    )
    photo = next(iter(infer.test_set(study, PLAIN, "val")))["data_samples"].img_path
    inferencer(photo, out_dir=str(tmp_path / "drawn"), pred_score_thr=0.0)
    assert list((tmp_path / "drawn").rglob("*.jpg")) or list((tmp_path / "drawn").rglob("*.png"))


def test_an_earlier_export_is_replaced_only_by_force(study, tmp_path, capsys):
    pretend_trained(study, PLAIN)
    save_study_json(study)
    command = ["export", PLAIN, str(tmp_path), "--study", str(study.paths.study)]
    (tmp_path / "README.md").write_text("mine")
    assert cli.main(command) == 2
    assert "README.md already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert cli.main([*command, "--force"]) == 0
    assert (tmp_path / "README.md").read_text().startswith(f"# {PLAIN}")


def test_a_run_without_a_training_names_the_command(study, tmp_path):
    with pytest.raises(UserError) as error:
        export(study, "v05_r50_rfs_ls_plain", 0, tmp_path)
    assert "pcb train v05_r50_rfs_ls_plain --seed 0" in error.value.fix
