"""The configs and examples of the plug-in page, as a user edits them, on a tiny data set."""

from __future__ import annotations

import copy
import inspect
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from imported import imported_packages
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from squares import CLASSES, write_squares
from tiny import C, D, roi_head

import pcb.mmdet
from pcb.calibration import ConfusionMatrixCalibration
from pcb.errors import UserError
from pcb.files import ROOT
from pcb.losses import PCBCrossEntropyLoss, PCBSeesawLoss, Regulariser
from pcb.lvis_metric import PCBLVISMetric

# With the number of confusion matrices of each.
CONFIGS = {"mask_rcnn_lvis": 1, "cascade_mask_rcnn_coco": 3, "faster_rcnn_coco": 1}
YOURS = {
    'data_root = "data/lvis_v1/"': 'data_root = "{data}/"',
    'data_root = "data/birds/"': 'data_root = "{data}/"',
    "annotations/lvis_v1_": "annotations/",
    "num_classes = 1203": "num_classes = 3",
    "metainfo = dict()": f"metainfo = dict(classes={CLASSES})",
    '("dove", "owl", "wren")': str(CLASSES),
    '"val/"': '"train/"',
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("squares") / "data")


@pytest.fixture(scope="module")
def edited(data, tmp_path_factory):
    """The configs after a user's edits, made small.

    A thin ResNet-18, 64-pixel images, 2 epochs of 3 iterations, PCB from the 2nd on.
    """
    folder, out = tmp_path_factory.mktemp("configs"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.config.utils._get_cfg_metainfo", not_in_metafiles)
        for name in CONFIGS:
            text = (ROOT / f"docs/plugin/{name}.py").read_text()
            for ours, yours in YOURS.items():
                text = text.replace(ours, yours.format(data=data))
            (folder / f"{name}.py").write_text(text)
            out[name] = Config.fromfile(folder / f"{name}.py")
            shrink(out[name])
    return out


def not_in_metafiles(package, config):
    """MMEngine would read all metafiles, for each base file again, to find that it is in none."""
    raise ValueError


@pytest.fixture
def config(edited, tmp_path, monkeypatch):
    """A config of docs/plugin/ by name, with top-level keys replaced.

    MMEngine's pretty printing is off, since it takes seconds.
    """
    monkeypatch.setattr(Config, "pretty_text", "")
    monkeypatch.setattr(Runner, "_log_env", lambda self, env: None)

    def read(name, **changes):
        cfg = copy.deepcopy(edited[name])
        cfg.work_dir = str(tmp_path / "run")
        for key, value in changes.items():
            cfg[key] = value
        return cfg

    return read


def shrink(cfg):
    keys = ("val_dataloader", "val_evaluator", "val_cfg")
    cfg.validation = {key: copy.deepcopy(cfg[key]) for key in keys}
    model, roi = cfg.model, cfg.model.roi_head
    model.backbone = dict(type="ResNet", depth=18, base_channels=4, norm_eval=True)
    model.neck.update(in_channels=[4, 8, 16, 32], out_channels=8)
    model.rpn_head.update(in_channels=8, feat_channels=8)
    model.train_cfg.rpn_proposal.max_per_img = 20
    model.test_cfg.rpn.max_per_img = 20
    for head in [roi.bbox_head] if isinstance(roi.bbox_head, dict) else roi.bbox_head:
        head.update(in_channels=8, fc_out_channels=8)
        head.loss_cls.start_epoch = 2
    stages = model.train_cfg.rcnn
    for rcnn in [stages] if isinstance(stages, dict) else stages:
        rcnn.sampler.num = 16
    roi.bbox_roi_extractor.update(out_channels=8)
    if "mask_head" in roi:
        roi.mask_roi_extractor.update(out_channels=8)
        roi.mask_head.update(in_channels=8, conv_out_channels=8, num_convs=1)
    if roi.type == "IterativeRoIHead":
        roi.hidden = 8
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        data = loader.dataset.get("dataset", loader.dataset)
        for step in data.pipeline:
            if step.type == "Resize":
                step.scale = (64, 64)
            elif step.type == "RandomChoiceResize":
                step.scales = [(64, 64), (80, 64)]
    for split in ("val", "test"):
        cfg.update(dict.fromkeys((f"{split}_dataloader", f"{split}_evaluator", f"{split}_cfg")))
    cfg.visualizer = dict(type="Visualizer", vis_backends=[])
    cfg.default_hooks.pop("visualization")
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2)
    cfg.optim_wrapper.optimizer.lr = 0.002
    cfg.env_cfg.dist_cfg.backend = "gloo"
    cfg.log_level = "ERROR"
    cfg.randomness = dict(seed=0)


def regularisers(model):
    return [m for m in model.modules() if isinstance(m, Regulariser)]


def detect(model):
    model.eval()
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (64, 64))
    sample = DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})
    with torch.no_grad():
        return model.predict(torch.rand(1, 3, 64, 64), [sample], rescale=False)[0].pred_instances


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_and_detects(config, name):
    runner = Runner.from_cfg(config(name))
    model = runner.train()
    matrices = [regulariser.confusion.matrix for regulariser in regularisers(model)]
    assert len(matrices) == CONFIGS[name]
    for regulariser, matrix in zip(regularisers(model), matrices, strict=True):
        assert (
            regulariser.epoch == 2
            and regulariser.is_active
            and regulariser.alpha_at() == regulariser.alpha > 0
        )
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(3))
    different = {matrix.numpy().tobytes() for matrix in matrices}
    assert len(different) == len(matrices)  # a stage learns from its own boxes
    start = runner.message_hub.get_info(pcb.mmdet.PCBEpochHook.KEY)
    assert start == 3  # the first iteration of the second epoch
    detections = detect(model)
    assert detections.scores.isfinite().all() and ("masks" in detections) == ("mask" in name)


def test_a_resumed_training_keeps_its_matrix(config, tmp_path):
    name = "mask_rcnn_lvis"
    first = config(name, train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=1))
    first.model.roi_head.bbox_head.loss_cls.start_epoch = 1
    Runner.from_cfg(first).train()
    checkpoint = torch.load(tmp_path / "run/epoch_1.pth", weights_only=False)
    saved = checkpoint["state_dict"]["roi_head.bbox_head.loss_cls.pcb.confusion.bank"]
    runner = Runner.from_cfg(config(name, resume=True))
    runner.load_or_resume()
    (regulariser,) = regularisers(runner.model)
    assert saved.any() and torch.equal(regulariser.confusion.bank, saved)
    runner.train()
    assert regulariser.is_active and not torch.equal(regulariser.confusion.bank, saved)


def test_a_training_starts_from_a_plain_detector(config):
    cfg = config("mask_rcnn_lvis")
    init_default_scope("mmdet")
    plain = cfg.model.copy()
    ours = MODELS.build(cfg.model)
    plain.roi_head = dict(
        cfg.model.roi_head,
        type="StandardRoIHead",
        bbox_head={**cfg.model.roi_head.bbox_head, "loss_cls": dict(type="CrossEntropyLoss")},
    )
    for key in ("num_steps", "step_weights", "identity_start", "hidden"):
        plain.roi_head.pop(key)
    plain = MODELS.build(plain)
    report = ours.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert {key.split(".")[1] for key in report.missing_keys} == {"iterative", "bbox_head"}
    of_box_head = [key for key in report.missing_keys if "bbox_head" in key]
    assert all("loss_cls.pcb.confusion." in key for key in of_box_head)
    x = torch.randn(4, 8, 7, 7)
    first_step = ours.roi_head.steps(x)[0]
    torch.testing.assert_close(first_step, plain.roi_head.bbox_head(x))


def test_a_step_can_be_chosen_at_test_time(config):
    cfg = config("faster_rcnn_coco")
    cfg.model.roi_head.test_cls_step = 0
    init_default_scope("mmdet")
    head = MODELS.build(cfg.model).roi_head
    x = tuple(torch.randn(1, 8, 16 >> k, 16 >> k) for k in range(5))
    rois = torch.tensor([[0.0, 5, 5, 40, 40]])
    steps, out = head.step_predictions(x, rois), head._bbox_forward(x, rois)
    assert torch.equal(out["cls_score"], steps[0][0]) and torch.equal(out["bbox_pred"], steps[2][1])


def test_a_missing_hook_is_an_error_in_the_second_iteration(config):
    runner = Runner.from_cfg(config("cascade_mask_rcnn_coco", custom_hooks=[]))
    with pytest.raises(UserError, match="PCBEpochHook"):
        runner.train()
    assert runner.iter == 1


def test_without_a_runner_the_epoch_need_not_be_set():
    loss = PCBCrossEntropyLoss(3)
    for _ in range(3):
        loss(torch.randn(4, 4), torch.tensor([0, 1, 2, 3]))
    assert not loss.pcb.is_active


def test_half_precision_gives_the_same_matrix():
    matrices, losses = [], []
    for enabled in (True, False):
        torch.manual_seed(0)
        head, labels = roi_head(), torch.arange(16) % (C + 1)
        regulariser = head.bbox_head.loss_cls.pcb
        regulariser.start_epoch, regulariser.absent = 1, list(range(C))
        targets = labels, torch.ones(16), torch.zeros(16, 4), torch.ones(16, 4)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            steps = head.steps(torch.randn(16, D, 7, 7))
            out = head.step_losses(steps, None, *targets)
        out["loss_cls"].backward()
        assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
        matrices.append(head.bbox_head.loss_cls.confusion.matrix)
        losses.append(out["loss_cls"])
    assert losses[0].dtype == matrices[0].dtype == torch.float32 and matrices[0].any()
    torch.testing.assert_close(*matrices, atol=1e-3, rtol=0)
    torch.testing.assert_close(*losses, atol=1e-3, rtol=0)


def test_iterations_can_stand_for_epochs(config):
    loop = dict(type="IterBasedTrainLoop", max_iters=5)
    schedule = dict(param_scheduler=[], train_cfg=loop)
    with pytest.raises(UserError, match="iterations"):
        Runner.from_cfg(config("faster_rcnn_coco", **schedule)).train()
    hooks = [dict(type="PCBEpochHook", iterations=4)]
    runner = Runner.from_cfg(config("faster_rcnn_coco", **schedule, custom_hooks=hooks))
    runner.train()
    assert runner.message_hub.get_info(pcb.mmdet.PCBEpochHook.KEY) == 4
    assert regularisers(runner.model)[0].epoch == 2


@pytest.mark.parametrize("by_iterations", [False, True])
def test_a_training_that_ends_before_pcb_starts_is_refused(config, by_iterations):
    changes: dict = {"train_cfg": dict(type="EpochBasedTrainLoop", max_epochs=12)}
    if by_iterations:  # 23 of 2 iterations an epoch end in the 12th
        changes = {
            "train_cfg": dict(type="IterBasedTrainLoop", max_iters=23),
            "custom_hooks": [dict(type="PCBEpochHook", iterations=2)],
        }
    cfg = config("cascade_mask_rcnn_coco", param_scheduler=[], **changes)
    cfg.model.roi_head.bbox_head[2].loss_cls.start_epoch = 17
    runner = Runner.from_cfg(cfg)
    with pytest.raises(UserError, match=r"(?s)epoch 17, the training has 12.*start_epoch=9 "):
        runner.train()
    assert runner.iter == 0


def test_an_absent_class_keeps_pcb_inactive_until_it_is_listed():
    hook, regulariser, lines = pcb.mmdet.PCBEpochHook(), PCBSeesawLoss(3, start_epoch=1).pcb, []
    hook.regularisers = [regulariser]
    runner = SimpleNamespace(logger=SimpleNamespace(warning=lines.append))
    regulariser.update_confusion(torch.eye(3)[:2], torch.tensor([0, 1]))
    hook.warn(runner)
    assert not regulariser.is_active and "[2]" in lines[0] and "absent" in lines[0]
    regulariser.absent = [2]
    hook.warn(runner)
    assert regulariser.is_active and len(lines) == 1


def test_numbers_of_classes_that_do_not_agree_are_refused(config):
    cfg = config("mask_rcnn_lvis")
    cfg.model.roi_head.bbox_head.loss_cls.num_classes = 4
    init_default_scope("mmdet")
    with pytest.raises(UserError, match=r"(?s)3 classes.*built for 4.*fix:.*without background"):
        MODELS.build(cfg.model)


def blocks(language: str, page: str = "docs/plugin.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_snippet_of_the_readme_is_a_config(tmp_path, monkeypatch):
    monkeypatch.setattr("mmengine.config.utils._get_cfg_metainfo", not_in_metafiles)
    (snippet,) = blocks("python", "README.md")
    assert snippet == blocks("python")[0]
    (tmp_path / "config.py").write_text(snippet)
    cfg = Config.fromfile(tmp_path / "config.py")
    cfg.model.backbone.pop("init_cfg")  # weights to download
    init_default_scope("mmdet")
    roi_head = MODELS.build(cfg.model).roi_head
    regulariser = roi_head.bbox_head.loss_cls.pcb
    assert regulariser.alpha and regulariser.start_epoch <= cfg.train_cfg.max_epochs
    assert roi_head.mask_head.num_classes == roi_head.bbox_head.num_classes == 1203
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.type == "PCBLVISMetric" and evaluator.ann_file.endswith("lvis_v1_val.json")
        options = {k: v for k, v in evaluator.items() if k not in ("type", "_scope_")}
        inspect.signature(PCBLVISMetric).bind(**options)


def test_the_excerpt_on_the_page_is_that_of_the_config(edited):
    excerpt: dict = {}
    exec(blocks("python")[0], excerpt)
    config, shrunk = edited["mask_rcnn_lvis"], {"num_classes": 3, "start_epoch": 2}
    ours, roi_head = excerpt["model"]["roi_head"], config.model.roi_head
    assert ours.pop("mask_head").keys() <= roi_head.mask_head.keys()
    box_head = ours.pop("bbox_head")
    for key, value in box_head["loss_cls"].items():
        assert key == "_delete_" or roi_head.bbox_head.loss_cls[key] == shrunk.get(key, value)
    assert all(roi_head[key] == value for key, value in ours.items())
    assert config.custom_imports == excerpt["custom_imports"]
    assert excerpt["custom_hooks"][0] in config.custom_hooks


def test_the_page_calibrates_saved_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, names = np.random.default_rng(0), {}
    scores, labels = rng.dirichlet(np.ones(4), 40).astype(np.float32), rng.integers(0, 4, 40)
    np.savez("scores.npz", scores=scores, labels=labels)
    np.save("test_scores.npy", scores)
    exec(next(block for block in blocks("python") if "saved[" in block), names)
    total = scores[:, :3].sum(1, keepdims=True)
    matrix = np.stack([(scores[:, :3] / total)[labels == k].mean(0) for k in range(3)])
    p = scores[:, :3] @ (matrix / matrix.sum(0)).T
    expected = p / p.sum(1, keepdims=True) * total
    np.testing.assert_allclose(names["calibrated"][:, :3], expected, rtol=1e-5)
    np.testing.assert_array_equal(names["calibrated"][:, 3], scores[:, 3])


def test_the_command_on_the_page_prints_classes_and_absent_ones(
    data, tmp_path, monkeypatch, capsys
):
    content = json.loads((data / "annotations/train.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 7]
    (tmp_path / "train.json").write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["-", str(tmp_path / "train.json")])
    exec(program("absent ="), {})
    assert capsys.readouterr().out == "classes = ('dove', 'owl', 'wren')\nabsent = [1]\n"


def program(part: str) -> str:
    """The Python program in a shell command on the page that contains `part`."""
    programs = re.findall(r"<<'END'\n(.*?)\nEND", "".join(blocks("sh")), re.DOTALL)
    (code,) = [code for code in programs if part in code]
    return code


@pytest.mark.parametrize(
    ("threshold", "printed"),
    [
        ("0.001", "0 of 6 images repeated, up to 1 times\n"),
        ("0.9", "6 of 6 images repeated, up to 2 times\n"),
    ],
)
def test_the_command_on_the_page_counts_repeated_images(
    data, tmp_path, monkeypatch, capsys, threshold, printed
):
    """In each of the six images two of the three classes are shown: each class in four."""
    monkeypatch.setattr(sys, "argv", ["-", str(data / "annotations/train.json"), threshold])
    exec(program("threshold"), {})
    assert capsys.readouterr().out == printed
    if threshold == "0.9":
        dataset = dict(
            type="CocoDataset",
            data_root=str(data),
            ann_file="annotations/train.json",
            data_prefix=dict(img="train"),
            metainfo=dict(classes=CLASSES),
            pipeline=[],
        )
        init_default_scope("mmdet")
        repeated = DATASETS.build(
            dict(type="ClassBalancedDataset", dataset=dataset, oversample_thr=0.9)
        )
        assert len(repeated) == 12


def validated(config, **changes):
    """The config for LVIS with its validation, which `shrink` leaves out; without workers."""
    cfg = config("mask_rcnn_lvis")
    cfg.update(copy.deepcopy(cfg.validation))
    cfg.val_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.val_dataloader.dataset.pipeline[1].scale = (64, 64)
    cfg.val_evaluator.update(changes)
    return cfg


def test_the_config_for_lvis_validates_by_our_metric(config):
    metrics = Runner.from_cfg(validated(config)).val()
    kinds, names = (
        ("bbox", "segm"),
        ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    )
    assert set(metrics) == {f"lvis/{kind}_{name}" for kind in kinds for name in names}
    assert 0 <= metrics["lvis/segm_AP"] <= 1 and metrics["lvis/bbox_APr"] >= 0


def test_an_evaluator_of_other_classes_stops_the_run_before_its_training(config, data, tmp_path):
    content = json.loads((data / "annotations/val.json").read_text())
    content["categories"] = content["categories"][:2]
    (tmp_path / "val.json").write_text(json.dumps(content))
    runner = Runner.from_cfg(validated(config, ann_file=str(tmp_path / "val.json")))
    with pytest.raises(UserError, match=r"3 classes, of which .* has 2"):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize("plain", [False, True])
def test_the_page_takes_scores_out_of_mmdetection_and_puts_calibrated_ones_back(
    config, monkeypatch, plain
):
    """With PCB's loss in the iterative head, and with cross entropy in MMDetection's own."""
    cfg = config("mask_rcnn_lvis")
    if plain:
        cfg.model.roi_head.type = "StandardRoIHead"
        for key in ("num_steps", "step_weights", "identity_start", "hidden"):
            cfg.model.roi_head.pop(key)
        cfg.model.roi_head.bbox_head.loss_cls = dict(type="CrossEntropyLoss")
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    (code,) = [block for block in blocks("python") if "changed_scores" in block]
    given, logits = [], []
    record_nms(monkeypatch, given)
    head = model.roi_head.bbox_head
    predict = head.predict_by_feat

    def recording(rois, cls_scores, *args, **kwargs):
        logits.extend(cls_scores)
        return predict(rois, cls_scores, *args, **kwargs)

    monkeypatch.setattr(head, "predict_by_feat", recording)
    names = {"model": model, "loader": [photograph(k) for k in range(3)]}
    exec(code, names)
    scores = [z.softmax(-1) for z in logits]
    assert len(names["saved"]) == 3 and len(names["results"]) == 3
    for ours, theirs in zip(names["saved"], scores, strict=False):
        torch.testing.assert_close(ours, theirs)
    true, labels = torch.cat(scores[:3]), torch.cat(names["labels"])
    expected = torch.zeros(3, 3)
    for k in range(3):
        expected[k] = (true[:, :3] / true[:, :3].sum(1, keepdim=True))[labels == k].mean(0)
    torch.testing.assert_close(names["matrix"], expected)
    calibrate = ConfusionMatrixCalibration(expected)
    for ours, theirs in zip(given[3:], scores[3:], strict=True):
        torch.testing.assert_close(ours, calibrate(theirs))
        assert (ours - theirs).abs().max() > 1e-4
    given.clear()
    with torch.no_grad():  # afterwards the detector is as before
        model.test_step(photograph(0))
    torch.testing.assert_close(given[0], scores[3])


def record_nms(monkeypatch, given):
    """Keep the scores that MMDetection's NMS gets."""
    from mmdet.models.roi_heads.bbox_heads import bbox_head

    nms = bbox_head.multiclass_nms

    def recording(boxes, scores, *args, **kwargs):
        given.append(scores)
        return nms(boxes, scores, *args, **kwargs)

    monkeypatch.setattr(bbox_head, "multiclass_nms", recording)


def photograph(seed):
    """A batch of one image of 64 pixels, shown at twice its size, with an object of each class."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"img_shape": (64, 64), "ori_shape": (32, 32), "pad_shape": (64, 64)}
    sample = DetDataSample(metainfo={**shapes, "scale_factor": (2.0, 2.0), "img_id": seed})
    corner = 10 * torch.rand(3, 2, generator=generator)
    boxes = torch.cat([corner, corner + 8 + 10 * torch.rand(3, 2, generator=generator)], 1)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(3))
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8, generator=generator)
    return {"inputs": [image], "data_samples": [sample]}


def test_the_plug_in_needs_no_pipeline():
    required = {"torch", "numpy", "mmdet", "mmengine"}
    assert imported_packages("pcb.mmdet") == required | {"hotcoco"}  # of PCBLVISMetric alone
    assert imported_packages("pcb.losses", "pcb.iterative") == {"torch"}
    assert imported_packages("pcb.calibration") == {"torch", "numpy"}
