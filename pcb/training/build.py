"""Experiment -> mmengine Config: the only place where a line of configs/paper.yaml becomes a model, data and a schedule.

`config` is the whole training, `detector` a trained model. Whatever neither the experiment nor the scale says comes
from the scale's base detector under configs/mmdet/.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path

import torch

from pcb.training.import_stubs import lean

with redirect_stdout(io.StringIO()), lean():  # mmdet tells of every optional package that it lacks
    from mmdet.registry import MODELS

    # Imported for what they register with mmdet:
    import pcb.data.lvis.dataset
    import pcb.mmdet
    import pcb.training.hooks
    import pcb.training.sampler  # noqa: F401
    from pcb.training.memory_format import make_outputs_readable, to_channels_last
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.registry import init_default_scope

from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError
from pcb.files import ROOT
from pcb.study import Study
from pcb.training import checkpoint as checkpoints
from pcb.training.model import model_overrides

MEMORY = "roi_head.memory."  # in the names of LOCE's remembered features
ONLY_FLIPPED = {"LoadImageFromFile", "LoadAnnotations", "Resize", "RandomFlip", "PackDetInputs"}


def config(
    study: Study,
    run: str,
    seed: int,
    work_dir: str | Path,
    until_epoch: int | None = None,
    stage: int = -1,
) -> Config:
    """The training of `run` as mmengine runs it, its outputs in `work_dir`; `until_epoch` stops it early, on the same schedule.

    `stage`: which of `registry.stages(loss)`, where the method has two.
    """
    experiment, train, schedule = study.experiments[run], study.scale["train"], study.schedule
    part = study.registry.stages(experiment.loss)[stage]
    epochs, milestones = (
        part.epochs or schedule["epochs"],
        part.milestones or schedule["milestones"],
    )
    files = dataset_files(study, experiment.dataset, "train")
    classes = len(index(*files, study.paths.indices).categories)
    cfg = base(study, experiment.backbone)
    lay_model(cfg, study, run, stage)
    lay_data(
        cfg,
        study,
        files,
        seed,
        train["batch_size"],
        train["rfs_threshold"] if experiment.sampler == "rfs" else None,
    )
    lay_optimizer(
        cfg, study, {**cfg.pop("optimizer"), "lr": part.lr * train["lr"]}, train["clip_grad"]
    )
    # Without an end mmengine would take that of this stretch of training for it, and a trunk would never see its drop.
    drops = dict(
        type="MultiStepLR", milestones=list(milestones), gamma=train["lr_drop"], end=epochs
    )
    warmup = dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=train["warmup_iters"])
    cfg.param_scheduler = [warmup, drops] if train["warmup_iters"] else [drops]
    cfg.train_cfg = dict(type="ResumableLoop", max_epochs=until_epoch or epochs, seed=seed)
    lay_runtime(cfg, study, seed, work_dir, {"run": run, "classes": classes})
    if part.trained:
        cfg.custom_hooks.append(dict(type="TrainOnlyHook", parts=list(part.trained)))
    cfg.custom_hooks += [dict(type=hook) for hook in part.hooks]
    return cfg


def pretraining(study: Study, backbone: str, work_dir: str | Path) -> Config:
    """The pretraining of the scale's base detector: all its layers, from random weights, on the pretraining classes."""
    plan, folder = study.scale["pretrain"], study.paths.data("pretrain")
    files = str(folder / "train.json"), str(folder / "images")
    classes = len(index(*files, study.paths.indices).categories)
    cfg = base(study, backbone)
    cfg.model.type = "MaskRCNN"
    cfg.model.backbone.update(frozen_stages=-1, norm_eval=False)
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = classes
    lay_data(cfg, study, files, 0, plan["batch_size"], None)
    lay_optimizer(
        cfg, study, dict(type="AdamW", lr=plan["lr"], weight_decay=plan["weight_decay"]), None
    )
    cfg.param_scheduler = [
        dict(type="CosineAnnealingLR", by_epoch=False, T_max=plan["iterations"], eta_min=0)
    ]
    cfg.train_cfg = dict(type="ResumableLoop", max_iters=plan["iterations"], seed=0)
    lay_runtime(cfg, study, 0, work_dir, {"run": f"pretraining of {backbone}", "classes": classes})
    return cfg


def detector(study: Study, run: str, checkpoint: str | Path | None = None) -> torch.nn.Module:
    """The detector of `run` in eval mode on the scale's device, with the weights of `checkpoint` (None: untrained).

    Raises `UserError` where the checkpoint is damaged, holds code, or is of another class count or model.
    """
    cfg = base(study, study.experiments[run].backbone)
    lay_model(cfg, study, run)
    model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_weights(model, checkpoints.load(checkpoint), checkpoint)
    model = model.to(device(study)).eval()
    if channels_last(study):
        to_channels_last(model)
    make_outputs_readable(model)
    return model


def check_heads(model: torch.nn.Module, classes: int) -> None:
    """Assert that every predictor is as wide as the data set has classes, rather than let a label index past it on a GPU."""
    box, mask = model.roi_head.bbox_head, model.roi_head.mask_head
    widths = {
        "box deltas": box.fc_reg.out_features // 4,
        "masks": mask.conv_logits.out_channels,
        "classes": box.num_classes,
    }
    wrong = {what: width for what, width in widths.items() if width != classes}
    assert not wrong, f"{classes} classes in the data set, but the heads are built for {wrong}"


def load_weights(model: torch.nn.Module, state: dict, source: str | Path) -> None:
    """Load the weights of a checkpoint of the same model. Raises `UserError` for another class count or another model.

    A branch may lack statistics of the loss that its trunk keeps, and a finished training LOCE's memory; else they must agree.
    """
    ours = model.roi_head.bbox_head.num_classes
    theirs = state.get("meta", {}).get("classes")
    if theirs != ours:
        raise UserError(
            f"{source} is a checkpoint of another class count: {theirs} classes, this data set has {ours}",
            "delete it, or mend the annotation files that the scale's `datasets` names",
        )
    weights = state["state_dict"]
    missing = {key for key in set(model.state_dict()) - set(weights) if MEMORY not in key}
    extra = {key for key in set(weights) - set(model.state_dict()) if ".loss_cls." not in key}
    if missing or extra:
        names = ", ".join(sorted(missing | extra)[:4])
        raise UserError(
            f"{source} is a checkpoint of another model: it differs in {names}",
            "delete it; the training makes it anew",
        )
    model.load_state_dict(weights, strict=False)


# What the parts of a config are made of ------------------------------------------------------------------------------


def base(study: Study, backbone: str) -> Config:
    """The scale's base detector, with mmdet's registries in scope."""
    init_default_scope("mmdet")
    path = Path(study.scale["backbones"][backbone]["config"])
    path = path if path.is_absolute() else ROOT / path
    if not path.exists():
        raise UserError(
            f"{path}: no such detector config",
            f"mend backbones.{backbone}.config in the scale's YAML",
        )
    return Config.fromfile(str(path))


@lru_cache(maxsize=4)
def index(annotations: str, images: str, cache: Path | None = None) -> LVISIndex:
    return LVISIndex(annotations, images, cache)


def dataset_files(study: Study, dataset: str, split: str) -> tuple[str, str]:
    """(annotation file, image folder) of a data set at this scale."""
    entry = study.scale["datasets"][dataset]
    return str(entry[split]), str(entry["images"])


def lay_model(cfg: Config, study: Study, run: str, stage: int = -1) -> None:
    """The experiment's loss and RoI head, class counts from the annotation file, test thresholds from the scale."""
    experiment, scale = study.experiments[run], study.scale
    data = index(*dataset_files(study, experiment.dataset, "train"), study.paths.indices)
    own = experiment.pcb and study.scaled_gamma(experiment.pcb.gamma)
    overrides = model_overrides(
        experiment,
        num_classes=len(data.categories),
        stage=stage,
        registry=study.registry,
        start_epoch=study.schedule["pcb_start_epoch"],
        momenta=study.momenta(run) or [study.scaled_gamma(0.99)],
        active=own,
        absent=data.absent_classes,
        instance_counts=data.instance_count,
        soft_labels=study.keeps_soft_labels(run),
        hidden=scale["pcb"]["hidden"],
        identity_start=scale["pcb"]["identity_start"],
    )
    cfg.merge_from_dict({"model": overrides})
    rcnn = cfg.model.test_cfg.rcnn
    rcnn.score_thr, rcnn.max_per_img = scale["test"]["score_thr"], scale["test"]["max_per_image"]
    if cfg.get("feature_cache"):
        cfg.model.feature_cache = feature_cache(cfg, study, experiment.dataset)


def feature_cache(cfg: Config, study: Study, dataset: str) -> dict | None:
    """Arguments of a detector's feature cache; None if augmentation is more than a flip."""
    if not {step["type"] for step in cfg.train_pipeline} <= ONLY_FLIPPED:
        return None
    manifest = study.paths.data_manifest(dataset)
    if not manifest.exists():  # digests of all images are recorded for generated data only
        return {}
    return dict(folder=str(study.paths.features), images=checkpoints.sha256(manifest))


def lay_data(
    cfg: Config,
    study: Study,
    files: tuple[str, str],
    seed: int,
    batch_size: int,
    rfs_threshold: float | None,
) -> None:
    annotations, images = files
    pipeline, workers = cfg.train_pipeline, study.scale["hardware"]["workers"]
    sizes_vary = any(step["type"] == "RandomChoiceResize" for step in pipeline)
    if cfg.model.get("feature_cache") is not None:
        pipeline = [dict(type="FlipPipeline", steps=pipeline)]
    data = dict(
        type="PCBLVISDataset",
        ann_file=annotations,
        data_prefix=dict(img=images),
        pipeline=pipeline,
        cache_images=not sizes_vary,
        index_cache=str(study.paths.indices),
    )
    if rfs_threshold is not None:
        data = dict(type="ClassBalancedDataset", oversample_thr=rfs_threshold, dataset=data)
    cuda = study.scale["hardware"]["device"] == "cuda"
    cfg.train_dataloader = dict(
        batch_size=batch_size // (get_world_size() * micro_batches(study)),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=cuda,
        sampler=dict(
            type="EpochSampler",
            batch_size=batch_size,
            group_by_aspect=sizes_vary,
            micro_batches=micro_batches(study),
        ),
        dataset=dict(type="SeededDataset", seed=seed, dataset=data),
    )
    if workers:
        cfg.train_dataloader.prefetch_factor = 4  # micro-batches that each worker has ready: some images take ten times as long as others
    cfg.model.data_preprocessor.non_blocking = cuda  # pinned images travel while the GPU computes


def lay_optimizer(cfg: Config, study: Study, optimizer: dict, clip: float | None) -> None:
    """`train.amp` of the scale: none, fp16 (with a dynamic loss scale) or bf16. `clip`: largest norm of the gradient."""
    amp = study.scale["train"]["amp"]
    cfg.optim_wrapper = dict(
        type="OptimWrapper",
        optimizer=optimizer,
        clip_grad=clip and dict(max_norm=clip, norm_type=2),
        accumulative_counts=micro_batches(study),
    )
    if amp != "none":
        cfg.optim_wrapper.update(
            type="AmpOptimWrapper", dtype={"fp16": "float16", "bf16": "bfloat16"}[amp]
        )


def micro_batches(study: Study) -> int:
    """Return the number of micro-batches that make up a rank's share of a batch."""
    return study.scale["hardware"].get("accumulate", 1)


def lay_runtime(cfg: Config, study: Study, seed: int, work_dir: str | Path, meta: dict) -> None:
    """Hooks, seeds and processes. None of mmengine's own checkpoint, log and seed hooks: ours replace them."""
    cfg.work_dir, cfg.meta, cfg.checkpoints = str(work_dir), meta, dict(keep=2)
    cfg.randomness = dict(seed=seed)
    cfg.default_scope = "mmdet"
    cfg.default_hooks = dict.fromkeys(
        ("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")
    )
    cfg.device, cfg.channels_last = device(study).type, channels_last(study)
    cuda = cfg.device == "cuda"
    finite = dict(type="FiniteLossHook", interval=20 if cuda else 1)
    cfg.custom_hooks = [
        *cfg.get("custom_hooks", []),
        dict(type="PCBEpochHook"),
        finite,
        dict(type="ProgressHook"),
        dict(type="SaveHook"),
    ]
    cfg.launcher = "pytorch" if "TORCHELASTIC_RUN_ID" in os.environ else "none"
    cfg.env_cfg = dict(dist_cfg=dict(backend="nccl" if cuda else "gloo"))


def channels_last(study: Study) -> bool:
    return study.scale["hardware"].get("channels_last", False)


def device(study: Study) -> torch.device:
    """Where the scale wants to compute. Raises `UserError` where that is a GPU and there is none."""
    if study.scale["hardware"]["device"] == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"scale {study.scale['name']!r} needs a GPU and torch finds none",
            "install a CUDA build of torch and look at nvidia-smi, or set hardware.device: cpu and train.amp: none in its YAML",
        )
    return torch.device(study.scale["hardware"]["device"])
