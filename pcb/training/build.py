"""From an experiment to an mmengine config: model, data, schedule, runtime.

`config` is a whole training, `detector` a trained model. What neither the experiment nor the scale
sets comes from the scale's detector config under configs/mmdet/.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.registry import init_default_scope

# Imported for what they register with mmdet.
import pcb.data.lvis.dataset
import pcb.mmdet
import pcb.training.hooks
import pcb.training.sampler  # noqa: F401
from pcb.cluster.launcher import is_rank
from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError
from pcb.files import located
from pcb.heads.iterative import rename
from pcb.study import Study
from pcb.training import checkpoint as checkpoints
from pcb.training.memory_format import make_outputs_readable, to_channels_last
from pcb.training.model import model_overrides

FEATURE_MEMORY = "roi_head.memory."  # prefix of LOCE's memory of features in a state dict
LOG = "log.jsonl"  # records of losses, in the work folder of a training
FLIP_ONLY = {"LoadImageFromFile", "LoadAnnotations", "Resize", "RandomFlip", "PackDetInputs"}


def config(
    study: Study,
    run: str,
    seed: int,
    work_dir: str | Path,
    until_epoch: int | None = None,
    stage: int = -1,
    log: Path | None = None,
) -> Config:
    """Return the config of a training.

    Args:
        study: The study.
        run: The experiment's id.
        seed: Seed of the training.
        work_dir: Folder of its outputs.
        until_epoch: Stop after this 1-based epoch of the same schedule.
        stage: Index into `study.registry.stages(loss)`.
        log: The file of records of losses; None: `log.jsonl` in `work_dir`.
    """
    experiment, train, schedule = study.experiments[run], study.scale["train"], study.schedule
    this_stage = study.registry.stages(experiment.loss)[stage]
    epochs = this_stage.epochs or schedule["epochs"]
    milestones = this_stage.milestones or schedule["milestones"]
    files = dataset_files(study, experiment.dataset, "train")
    classes = len(index(*files, study.paths.indices).categories)
    cfg = base_config(study, experiment.backbone)
    set_model(cfg, study, run, stage)
    rfs_threshold = train["rfs_threshold"] if experiment.sampler == "rfs" else None
    set_data(cfg, study, files, seed, train["batch_size"], rfs_threshold)
    optimizer = {**cfg.pop("optimizer"), "lr": this_stage.lr * train["lr"]}
    set_optimizer(cfg, study, optimizer, train["clip_grad"])
    # By default mmengine would end the schedule at `until_epoch`, and a trunk would miss its drop.
    drops = dict(
        type="MultiStepLR", milestones=list(milestones), gamma=train["lr_drop"], end=epochs
    )
    warmup = dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=train["warmup_iters"])
    cfg.param_scheduler = [warmup, drops] if train["warmup_iters"] else [drops]
    cfg.train_cfg = dict(type="ResumableLoop", max_epochs=until_epoch or epochs, seed=seed)
    set_runtime(cfg, study, seed, work_dir, {"run": run, "classes": classes})
    cfg.trained = list(this_stage.trained)
    number = stage % len(study.registry.stages(experiment.loss))
    cfg.log = dict(file=str(log or cfg.log.file), stage=number)
    cfg.custom_hooks += [dict(type=hook) for hook in this_stage.hooks]
    return cfg


def pretraining(study: Study, backbone: str, work_dir: str | Path) -> Config:
    """Return the config that pretrains all layers of a detector on the pretraining classes."""
    plan, folder = study.scale["pretrain"], study.paths.data("pretrain")
    files = str(folder / "train.json"), str(folder / "images")
    classes = len(index(*files, study.paths.indices).categories)
    cfg = base_config(study, backbone)
    cfg.model.type = "MaskRCNN"
    cfg.model.backbone.update(frozen_stages=-1, norm_eval=False)
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = classes
    set_data(cfg, study, files, 0, plan["batch_size"], None)
    optimizer = dict(type="AdamW", lr=plan["lr"], weight_decay=plan["weight_decay"])
    set_optimizer(cfg, study, optimizer, None)
    cosine = dict(type="CosineAnnealingLR", by_epoch=False, T_max=plan["iterations"], eta_min=0)
    cfg.param_scheduler = [cosine]
    cfg.train_cfg = dict(type="ResumableLoop", max_iters=plan["iterations"], seed=0)
    set_runtime(cfg, study, 0, work_dir, {"run": f"pretraining of {backbone}", "classes": classes})
    return cfg


def detector(study: Study, run: str, checkpoint: str | Path | None = None) -> TwoStageDetector:
    """Return a run's detector in eval mode on the scale's device.

    Args:
        study: The study.
        run: The experiment's id.
        checkpoint: A checkpoint of a training of this run; None for untrained weights.

    Raises:
        UserError: The checkpoint is damaged, holds code, or is of another class count or model.
    """
    cfg = base_config(study, study.experiments[run].backbone)
    set_model(cfg, study, run)
    model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_weights(model, checkpoints.load(checkpoint), checkpoint)
    model = model.to(device(study)).eval()
    if channels_last(study):
        to_channels_last(model)
    make_outputs_readable(model)
    return model


def check_heads(model: TwoStageDetector, classes: int) -> None:
    """Assert that every predictor has `classes` outputs; a GPU would not check the labels."""
    box, mask = model.roi_head.bbox_head, model.roi_head.mask_head
    widths = {
        "box deltas": box.fc_reg.out_features // 4,
        "masks": mask.conv_logits.out_channels,
        "classes": box.num_classes,
    }
    wrong = {what: width for what, width in widths.items() if width != classes}
    assert not wrong, f"{classes} classes in the data set, but the heads are built for {wrong}"


def load_weights(model: TwoStageDetector, state: dict, source: str | Path) -> None:
    """Load the weights of a checkpoint of the same model.

    Names must agree, with two exceptions: a trunk may keep statistics of the loss that a branch
    does not, and a finished training has dropped LOCE's feature memory.

    Args:
        model: The detector.
        state: Content of the checkpoint.
        source: Its path, for messages.

    Raises:
        UserError: The checkpoint is of another class count or another model.
    """
    ours = model.roi_head.bbox_head.num_classes
    theirs = state.get("meta", {}).get("classes")
    if theirs != ours:
        raise UserError(
            f"{source} is a checkpoint of another class count: "
            f"{theirs} classes, this data set has {ours}",
            "delete it, or fix the annotation files in the scale's `datasets`",
        )
    weights = dict(state["state_dict"])
    rename(weights)
    expected = set(model.state_dict())
    missing = {key for key in expected - set(weights) if FEATURE_MEMORY not in key}
    extra = {key for key in set(weights) - expected if ".loss_cls." not in key}
    if missing or extra:
        names = ", ".join(sorted(missing | extra)[:4])
        raise UserError(
            f"{source} is a checkpoint of another model: it differs in {names}",
            "delete it; the training writes a new one",
        )
    model.load_state_dict(weights, strict=False)


# Sections of a config --------------------------------------------------------------------------


def base_config(study: Study, backbone: str) -> Config:
    """Return the scale's detector config for a backbone, with mmdet's registries in scope."""
    init_default_scope("mmdet")
    path = located(study.scale["backbones"][backbone]["config"])
    if not path.exists():
        raise UserError(
            f"{path}: no such detector config",
            f"fix backbones.{backbone}.config in the scale's YAML",
        )
    return Config.fromfile(str(path))


@lru_cache(maxsize=4)
def index(annotations: str, images: str, cache: Path | None = None) -> LVISIndex:
    """Return the index of an annotation file; a process reads each file once."""
    return LVISIndex(annotations, images, cache)


def dataset_files(study: Study, dataset: str, split: str) -> tuple[str, str]:
    """Return annotation file and image folder of a split of a data set."""
    entry = study.scale["datasets"][dataset]
    return str(entry[split]), str(entry["images"])


def set_model(cfg: Config, study: Study, run: str, stage: int = -1) -> None:
    """Set loss, RoI head, class count and test thresholds of an experiment."""
    experiment, scale = study.experiments[run], study.scale
    data = index(*dataset_files(study, experiment.dataset, "train"), study.paths.indices)
    overrides = model_overrides(
        experiment,
        num_classes=len(data.categories),
        stage=stage,
        registry=study.registry,
        start_epoch=study.schedule["pcb_start_epoch"],
        momenta=study.momenta(run) or [study.scaled_gamma(0.99)],
        active=study.scaled_gamma(experiment.pcb.gamma) if experiment.pcb else None,
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
    """Return the arguments of a feature cache; None if augmentation is more than a flip."""
    if not {step["type"] for step in cfg.train_pipeline} <= FLIP_ONLY:
        return None
    manifest = study.paths.data_manifest(dataset)
    if not manifest.exists():  # only generated data sets record digests of all images
        return {}
    return dict(folder=str(study.paths.features), images=checkpoints.sha256(manifest))


def set_data(
    cfg: Config,
    study: Study,
    files: tuple[str, str],
    seed: int,
    batch_size: int,
    rfs_threshold: float | None,
) -> None:
    """Set data set, sampler and data loader of a training.

    Args:
        cfg: The config.
        study: The study.
        files: Annotation file and image folder.
        seed: Seed of the augmentation.
        batch_size: Images of a batch over all ranks.
        rfs_threshold: Oversampling threshold of repeat factor sampling; None for random sampling.
    """
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
        cfg.train_dataloader.worker_init_fn = dict(type="ignore_stop_signals")
        # Some images take ten times as long as others, so each worker loads 4 ahead.
        cfg.train_dataloader.prefetch_factor = 4
    cfg.model.data_preprocessor.non_blocking = cuda  # copy pinned images while the GPU computes


def set_optimizer(cfg: Config, study: Study, optimizer: dict, clip: float | None) -> None:
    """Set the optimiser and its wrapper.

    `train.amp` of the scale is none, fp16 (with a dynamic loss scale) or bf16. Gradients are
    clipped to the norm `clip`.
    """
    amp = study.scale["train"]["amp"]
    cfg.optim_wrapper = dict(
        type="OptimWrapper",
        optimizer=optimizer,
        clip_grad=clip and dict(max_norm=clip, norm_type=2),
        accumulative_counts=micro_batches(study),
    )
    if amp != "none":
        dtype = {"fp16": "float16", "bf16": "bfloat16"}[amp]
        cfg.optim_wrapper.update(type="AmpOptimWrapper", dtype=dtype)


def micro_batches(study: Study) -> int:
    """Return the number of micro-batches that make up a rank's share of a batch."""
    return study.scale["hardware"].get("accumulate", 1)


def set_runtime(cfg: Config, study: Study, seed: int, work_dir: str | Path, meta: dict) -> None:
    """Set hooks, seed and process group; our hooks replace mmengine's default ones.

    Args:
        cfg: The config.
        study: The study.
        seed: Seed of the initial weights.
        work_dir: Folder of the outputs.
        meta: Metadata of every checkpoint: run, number of classes.
    """
    cfg.log = dict(file=str(Path(work_dir) / LOG), stage=0)
    cfg.work_dir, cfg.meta, cfg.checkpoints = str(work_dir), meta, dict(keep=2)
    cfg.randomness = dict(seed=seed)
    cfg.default_scope = "mmdet"
    cfg.default_hooks = dict.fromkeys(
        ("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")
    )
    cfg.device, cfg.channels_last = device(study).type, channels_last(study)
    cuda = cfg.device == "cuda"
    cfg.custom_hooks = [
        *cfg.get("custom_hooks", []),
        dict(type="PCBEpochHook"),
        dict(type="FiniteLossHook", interval=20 if cuda else 1),
        dict(type="ProgressHook"),
        dict(type="SaveHook"),
    ]
    cfg.launcher = "pytorch" if is_rank() else "none"
    cfg.env_cfg = dict(dist_cfg=dict(backend="nccl" if cuda else "gloo"))


def channels_last(study: Study) -> bool:
    """Whether convolutions run with channels innermost in memory."""
    return study.scale["hardware"].get("channels_last", False)


def device(study: Study) -> torch.device:
    """Return the scale's device. Raises `UserError` if it is a GPU and torch finds none."""
    if study.scale["hardware"]["device"] == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"scale {study.scale['name']!r} needs a GPU and torch finds none",
            "run `pcb doctor`, which names the cause (torch, driver, CUDA_VISIBLE_DEVICES), "
            "or set hardware.device: cpu and train.amp: none in the scale's YAML",
        )
    return torch.device(study.scale["hardware"]["device"])
