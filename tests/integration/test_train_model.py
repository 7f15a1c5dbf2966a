"""The detectors of an experiment: starting weights, and the paper's detector on real images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training
from training import PLAIN, tiny_study

from pcb.errors import UserError
from pcb.study import load_study
from pcb.training import build, weights
from pcb.training.pretrain import pretrain
from pcb.training.runner import Runner

SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/lvis_v0.5_sample"
BRANCH = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"
UNUSED = {"imgaug", "matplotlib", "numba", "pandas", "scipy.optimize", "scipy.stats", "sympy"}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return training.scenes(tmp_path_factory.mktemp("scenes"))


def test_a_new_class_starts_from_the_mean_over_the_pretraining_classes(tmp_path, datasets):
    model = build.detector(tiny_study(tmp_path, datasets), PLAIN)
    theirs = {key: torch.randn_like(value.float()) for key, value in model.state_dict().items()}
    fc_reg, logits = "roi_head.bbox_head.fc_reg.weight", "roi_head.mask_head.conv_logits.weight"
    theirs[fc_reg], theirs[logits] = torch.randn(4 * 136, 128), torch.randn(136, 32, 1, 1)
    fresh = model.roi_head.bbox_head.fc_cls.weight.clone()

    def fresh_part(key):
        return "fc_cls" in key or "loss_cls" in key

    weights.load_pretrained(model, theirs, Path("theirs.pth"), fresh_part)
    ours = model.state_dict()
    mean = theirs[fc_reg].view(136, 4, 128).mean(0)
    assert all(torch.equal(rows, mean) for rows in ours[fc_reg].view(60, 4, 128))
    assert torch.equal(ours[logits][17], theirs[logits].mean(0))
    assert torch.equal(ours["backbone.conv1.weight"], theirs["backbone.conv1.weight"])
    assert torch.equal(ours["roi_head.bbox_head.fc_cls.weight"], fresh)
    del theirs["neck.fpn_convs.0.conv.weight"]
    missing = r"theirs\.pth does not fit this detector: neck\.fpn_convs\.0\.conv\.weight is missing"
    with pytest.raises(UserError, match=missing):
        weights.load_pretrained(model, theirs, Path("theirs.pth"), fresh_part)


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
    assert "training from scratch" in capsys.readouterr().out
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
        # As after training, 999 of 1000 of the 1000 x 1230 scores of an image are below score_thr.
        model.roi_head.bbox_head.fc_cls.bias[[0, -1]] = torch.tensor([5.0, 9.5])
        found = [
            model.test_step(batch)[0].pred_instances
            for batch in Runner.build_dataloader(cfg.test_dataloader)
        ]
    assert len(found) == 3
    assert all(len(f) <= 300 and f.masks.shape[0] == len(f) for f in found) and all(
        len(f) for f in found
    )


def test_a_missing_gpu_is_an_error(lvis, monkeypatch):
    monkeypatch.setitem(lvis.scale["hardware"], "device", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a GPU"):
        build.detector(lvis, BRANCH)


@pytest.mark.parametrize("module", ["pcb.training.train", "pcb.inference.infer"])
def test_a_job_starts_without_what_it_does_not_use(module):
    code = f"import sys, {module}; print(*{UNUSED} & set(sys.modules))"
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert not output.strip()


def test_stubs_are_gone_after_the_import():
    code = (
        "import pcb.training, torch.distributed.optim, mmdet.utils.mot_error_visualize as real; "
        "torch.distributed.optim.ZeroRedundancyOptimizer, real.imshow_mot_errors.__code__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
