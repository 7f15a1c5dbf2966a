"""An experiment's detectors: the mini one caches frozen features, the paper's takes real images."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import training
from mmdet.registry import MODELS
from training import PLAIN, tiny_study

from pcb.errors import UserError
from pcb.study import load_study
from pcb.synthetic.frozen_backbone import TRAINING
from pcb.training import build, weights
from pcb.training.memory_format import to_channels_last
from pcb.training.pretrain import pretrain
from pcb.training.runner import Runner

SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/lvis_v0.5_sample"
BRANCH = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return training.scenes(tmp_path_factory.mktemp("scenes"))


def first_batch(cfg):
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    loader.sampler.set_position(0)
    return next(iter(loader))


def test_cached_features_equal_those_of_an_uncached_detector(tmp_path, datasets):
    study = tiny_study(tmp_path, datasets)
    cfg = build.config(study, PLAIN, 0, tmp_path)
    assert cfg.model.feature_cache is not None
    torch.manual_seed(0)
    model = build.detector(study, PLAIN).train()
    batch = model.data_preprocessor(first_batch(cfg), training=True)

    def losses():
        torch.manual_seed(1)
        return {
            key: value.item()
            for key, value in model.loss(batch["inputs"], batch["data_samples"]).items()
        }

    computed = losses()
    assert len(model.cache[TRAINING]) == 8
    assert losses() == computed
    model.cache.clear()
    assert losses() == computed

    uncached = MODELS.build({**cfg.model, "feature_cache": None}).eval()
    to_channels_last(uncached)
    uncached.load_state_dict(model.state_dict())
    samples = batch["data_samples"]
    features, proposals = model.extract_and_propose(batch["inputs"], samples, TRAINING)
    for i, image in enumerate(batch["inputs"]):
        levels, (boxes,) = uncached.extract_and_propose(image[None], [samples[i]], TRAINING)
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(features, levels, strict=True))
        assert torch.equal(proposals[i].bboxes, boxes.bboxes)

    model.load_state_dict(model.state_dict())
    assert not model.cache, "loading weights clears the cache"


def test_the_caching_preprocessor_equals_the_stock_one(tmp_path, datasets):
    study = tiny_study(tmp_path, datasets)
    cfg = build.config(study, PLAIN, 0, tmp_path)
    ours, stock = (
        build.detector(study, PLAIN).data_preprocessor,
        MODELS.build(cfg.model.data_preprocessor),
    )
    batch = first_batch(cfg)
    truth = stock(batch, True)
    for _ in range(2):
        found = ours(batch, True)
        assert torch.equal(torch.stack(found["inputs"]), truth["inputs"])
        for a, b in zip(found["data_samples"], truth["data_samples"], strict=True):
            assert a.metainfo == b.metainfo and torch.equal(
                a.gt_instances.bboxes, b.gt_instances.bboxes
            )
            assert (a.gt_instances.masks.to_ndarray() == b.gt_instances.masks.to_ndarray()).all()
    assert len(ours.cache) == 8


def test_a_saved_feature_cache_is_loaded_by_the_same_frozen_modules_only(tmp_path, datasets):
    study = tiny_study(tmp_path, datasets)
    cfg = build.config(study, PLAIN, 0, tmp_path)
    first = build.detector(study, PLAIN).train()
    batch = first.data_preprocessor(first_batch(cfg), training=True)
    second = copy.deepcopy(first)
    other = copy.deepcopy(first)
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1)
    for model in (first, second, other):
        model.cache_folder, model.images_digest = str(tmp_path / "features"), "digest"
    first.loss(batch["inputs"], batch["data_samples"])
    first.save_cache(TRAINING)
    for model in (second, other):
        model.load_cache(TRAINING, torch.device("cpu"))
    ours, theirs = first.cache[TRAINING], second.cache[TRAINING]
    assert theirs.keys() == ours.keys() and len(theirs) == 8
    for key, (features, boxes) in ours.items():
        assert all(map(torch.equal, features, theirs[key][0])) and torch.equal(
            boxes, theirs[key][1]
        )
    assert not other.cache[TRAINING], "another backbone has its own file"

    (file,) = (tmp_path / "features").iterdir()
    written = file.read_bytes()
    second.save_cache(TRAINING)
    assert file.read_bytes() == written
    second.cache[TRAINING][0, False, ()] = next(iter(theirs.values()))  # one more image
    second.save_cache(TRAINING)
    first.cache.clear()
    first._cached(batch["inputs"][0], batch["data_samples"][0], TRAINING)
    assert len(first.cache[TRAINING]) == 9


def test_the_flip_pipeline_equals_the_stock_one(tmp_path, datasets):
    """Also after a training step: the returned samples are shared, so nothing may change them."""
    study = tiny_study(tmp_path, datasets)
    model = build.detector(study, PLAIN).train()
    cfg = build.config(study, PLAIN, 0, tmp_path)

    def digest(batch):
        truths = [(sample.metainfo, sample.gt_instances) for sample in batch["data_samples"]]
        return [
            batch["inputs"],
            [
                (meta, truth.bboxes.tensor, truth.labels, truth.masks.masks)
                for meta, truth in truths
            ],
        ]

    def packed(loader):
        loader.sampler.set_position(0)
        return next(iter(loader))

    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    batch = packed(loader)
    before = copy.deepcopy(digest(batch))
    assert len({s.flip for s in batch["data_samples"]}) == 2
    ready = model.data_preprocessor(batch, training=True)
    model.loss(ready["inputs"], ready["data_samples"])
    plainly = copy.deepcopy(cfg.train_dataloader)
    plainly.dataset.dataset.pipeline = cfg.train_pipeline
    for again in (packed(loader), packed(Runner.build_dataloader(plainly, seed=0))):
        assert str(digest(again)) == str(before)
        assert all(torch.equal(a, b) for a, b in zip(digest(again)[0], before[0], strict=True))
        for ours, theirs in zip(digest(again)[1], before[1], strict=True):
            assert all(
                (np.asarray(a) == np.asarray(b)).all()
                for a, b in zip(ours[1:], theirs[1:], strict=True)
            )


def test_only_the_roi_heads_of_the_small_detector_learn(tmp_path, datasets):
    model = build.detector(tiny_study(tmp_path, datasets), PLAIN).train()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "roi_head"
    }
    assert not any(m.training for m in model.backbone.modules())


def test_a_new_class_starts_from_the_mean_over_the_pretraining_classes(tmp_path, datasets):
    model = build.detector(tiny_study(tmp_path, datasets), PLAIN)
    theirs = {key: torch.randn_like(value.float()) for key, value in model.state_dict().items()}
    fc_reg, logits = "roi_head.bbox_head.fc_reg.weight", "roi_head.mask_head.conv_logits.weight"
    theirs[fc_reg], theirs[logits] = torch.randn(4 * 136, 128), torch.randn(136, 32, 1, 1)
    fresh = model.roi_head.bbox_head.fc_cls.weight.clone()

    def fresh_part(key):
        return "fc_cls" in key or "loss_cls" in key

    weights.take_over(model, theirs, Path("theirs.pth"), fresh_part)
    ours = model.state_dict()
    mean = theirs[fc_reg].view(136, 4, 128).mean(0)
    assert all(torch.equal(rows, mean) for rows in ours[fc_reg].view(60, 4, 128))
    assert torch.equal(ours[logits][17], theirs[logits].mean(0))
    assert torch.equal(ours["backbone.conv1.weight"], theirs["backbone.conv1.weight"])
    assert torch.equal(ours["roi_head.bbox_head.fc_cls.weight"], fresh)
    del theirs["neck.fpn_convs.0.conv.weight"]
    with pytest.raises(
        UserError,
        match=r"theirs\.pth does not fit this detector: neck\.fpn_convs\.0\.conv\.weight is missing",
    ):
        weights.take_over(model, theirs, Path("theirs.pth"), fresh_part)


@pytest.fixture(scope="module")
def lvis(tmp_path_factory):
    """The lvis scale as it is, on the three photographs that are here, on a CPU."""
    if not SAMPLE.is_dir():
        pytest.skip(f"real LVIS annotations are not here: {SAMPLE}")
    folder = tmp_path_factory.mktemp("lvis")
    content = json.loads((SAMPLE / "lvis_val_100.json").read_text())
    there = {int(path.stem) for path in (SAMPLE / "images").glob("*.jpg")}
    content["images"] = [image for image in content["images"] if image["id"] in there]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in there]
    (folder / "three.json").write_text(json.dumps(content))
    files = {
        "version": "v0.5",
        "train": str(folder / "three.json"),
        "val": str(folder / "three.json"),
        "images": str(SAMPLE / "images"),
    }
    study = load_study(
        "lvis", overrides={"results": str(folder), "datasets": {"v05": files, "v1": files}}
    )
    study.scale["backbones"]["r50"]["weights"] = "random"
    study.scale["hardware"].update(device="cpu", workers=0)
    study.scale["train"].update(
        amp="none", batch_size=1, rfs_threshold=0.5
    )  # a class of one image in three is repeated
    pretrain(study, "r50")
    return study


def test_the_papers_model_takes_an_iteration_and_detects_on_real_photographs(
    lvis, tmp_path, capsys
):
    cfg = build.config(lvis, BRANCH, 0, tmp_path)
    heads = cfg.model.roi_head
    assert (
        heads.type == "IterativeRoIHead"
        and heads.hidden == 512
        and heads.bbox_head.num_classes == 1230
    )
    assert heads.bbox_head.loss_cls.alpha == 0.4 and heads.bbox_head.loss_cls.momentum == [0.99]
    assert cfg.model.type == "MaskRCNN" and "feature_cache" not in cfg.model

    cfg.train_cfg.max_iters = 1
    runner = Runner.from_cfg(cfg)
    runner.begin = lambda runner: weights.initialise(runner.bare_model, lvis, "r50")
    before = runner.bare_model.roi_head.bbox_head.fc_cls.weight.detach().clone()
    runner.train()
    assert "all weights start at random" in capsys.readouterr().out
    model = runner.bare_model
    assert model.roi_head.bbox_head.fc_cls.weight.shape == (1231, 1024)
    assert model.roi_head.bbox_head.fc_reg.weight.shape == (4 * 1230, 1024)
    assert not torch.equal(before, model.roi_head.bbox_head.fc_cls.weight)
    confusion = model.roi_head.bbox_head.loss_cls.confusion
    seen = confusion.seen > 0
    train = build.index(*build.dataset_files(lvis, "v05", "train"))
    assert 0 < seen.sum() <= 1230 - len(train.absent_classes)
    assert torch.allclose(confusion.matrix[seen].sum(1), torch.ones(int(seen.sum())))

    cfg.test_dataloader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type="DefaultSampler", shuffle=False),
        dataset=dict(
            type="PCBLVISDataset",
            ann_file=cfg.train_dataloader.dataset.dataset.dataset.ann_file,
            test_mode=True,
            pipeline=cfg.test_pipeline,
            data_prefix=cfg.train_dataloader.dataset.dataset.dataset.data_prefix,
        ),
    )
    model.eval()
    with torch.no_grad():
        # As after training: all but one in a thousand of the 1000 x 1230 scores of an image are below score_thr.
        model.roi_head.bbox_head.fc_cls.bias[[0, -1]] = torch.tensor([5.0, 9.5])
        found = [
            model.test_step(batch)[0].pred_instances
            for batch in Runner.build_dataloader(cfg.test_dataloader)
        ]
    assert len(found) == 3
    assert all(len(f) <= 300 and f.masks.shape[0] == len(f) for f in found) and all(
        len(f) for f in found
    )


def test_a_scale_that_asks_for_a_gpu_says_so_where_there_is_none(lvis, monkeypatch):
    monkeypatch.setitem(lvis.scale["hardware"], "device", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a GPU"):
        build.detector(lvis, BRANCH)


def test_the_engine_starts_without_what_it_does_not_use():
    code = "import sys, pcb.training.train, pcb.inference.infer; print(*sorted({'sympy', 'numba', 'matplotlib'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ""


def test_stand_ins_are_gone_after_the_import():
    code = "import pcb.training.build, torch.distributed.optim as real, mmdet.utils.mot_error_visualize; real.ZeroRedundancyOptimizer"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
