"""`pcb export`: a trained detector as a plain MMDetection config and checkpoint.

    export(study, run, seed, "mine")     mine/config.py, weights.pth, classes.json, README.md

The config is self-contained: `init_detector("config.py", "weights.pth")` builds the detector and
`inference_detector` predicts what the pipeline detects as the variant `plain`. Where the method is
part of the detector, the config imports `pcb.mmdet`; any other config needs MMDetection alone.
"""

from __future__ import annotations

import colorsys
import inspect
from pathlib import Path

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict

from pcb import __version__
from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError
from pcb.files import atomic, write_json, write_text
from pcb.inference.infer import trained
from pcb.losses.base import ClassifierLoss
from pcb.losses.seesaw import SeesawLoss
from pcb.registry import load_class
from pcb.study import Study
from pcb.study.current import checkpoint_of, current_metrics
from pcb.study.detector_config import detector_title
from pcb.study.experiment import Experiment
from pcb.training import build, checkpoint
from pcb.training.model import loss_class_of

CONFIG, WEIGHTS, CLASSES, README = "config.py", "weights.pth", "classes.json", "README.md"
FILES = (CONFIG, WEIGHTS, CLASSES, README)
PLUGIN = "pcb.mmdet"
# Only the pipeline needs it: the detector of a frozen backbone predicts as any Mask R-CNN.
FROZEN = "pcb.synthetic.frozen_backbone"
# Parts of a checkpoint that only a training needs; they may be left out.
TRAINING_ONLY = (".loss_cls.", build.FEATURE_MEMORY)


def export(
    study: Study, run: str, seed: int, destination: str | Path, replace: bool = False
) -> Path:
    """Write a trained detector for use without the pipeline.

    Args:
        study: The study.
        run: The experiment's id.
        seed: Seed of the training.
        destination: Folder to write; it is made where it is missing.
        replace: Whether files of an earlier export may be replaced.

    Returns:
        The folder.

    Raises:
        UserError: The run is not trained, its checkpoint is missing or damaged, its loss is a file
            of a study, or the folder holds files of these names.
    """
    folder = Path(destination).expanduser()
    refuse_place(folder, replace)
    record = trained(study, run, seed)
    experiment = study.experiments[run]
    files = build.dataset_files(study, experiment.dataset, "train")
    data = build.index(*files, study.paths.indices)
    config = portable_config(study, run, data.classes)
    state = checkpoint.load(checkpoint_of(study, record))
    weights = portable_weights(config, state["state_dict"])
    about = {
        "run": run,
        "seed": seed,
        "scale": study.scale["name"],
        "fingerprint": record["fingerprint"],
        "checkpoint": record["sha256"],
        "pcb": __version__,
    }
    meta = {"dataset_meta": config.test_dataloader.dataset.metainfo.to_dict(), "exported": about}
    with atomic(folder / WEIGHTS) as temporary:
        torch.save({"meta": meta, "state_dict": weights}, temporary)
    write_text(folder / CONFIG, config_text(config, run, seed))
    write_json(folder / CLASSES, classes_of(data))
    write_text(folder / README, readme(study, run, seed, config, about))
    return folder


def refuse_place(folder: Path, replace: bool) -> None:
    """Raise `UserError` where files of the export exist and must not be replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder", "name a folder that does not exist yet")
    if not replace and (there := [name for name in FILES if (folder / name).exists()]):
        raise UserError(
            f"{folder} holds {', '.join(there)} already",
            "name another folder, or add --force to replace them",
        )


def portable_config(study: Study, run: str, classes: tuple[str, ...]) -> Config:
    """Return the config of a trained detector, without anything that only the pipeline has.

    Args:
        study: The study.
        run: The experiment's id.
        classes: Class names, by label.

    Raises:
        UserError: The loss is a file of a study and defines scores of its own.
    """
    experiment = study.experiments[run]
    ours = build.base_config(study, experiment.backbone)
    build.set_model(ours, study, run)
    model = ours.model
    if model.type == "FrozenBackboneMaskRCNN":
        model.type = "MaskRCNN"
        model.pop("feature_cache", None)
    simplify(model.roi_head, study, experiment)
    imports = [i for i in ours.get("custom_imports", {}).get("imports", ()) if i != FROZEN]
    if uses_plugin(model.roi_head):
        imports.append(PLUGIN)
    out: dict = {"default_scope": "mmdet"}
    if imports:
        out["custom_imports"] = dict(imports=imports, allow_failed_imports=False)
    out["model"] = model
    dataset = dict(
        type="CocoDataset",
        ann_file="",
        data_prefix=dict(img=""),
        metainfo=dict(classes=classes, palette=palette(len(classes))),
        test_mode=True,
        pipeline=ours.test_pipeline,
    )
    sampler = dict(type="DefaultSampler", shuffle=False)
    out["test_dataloader"] = dict(batch_size=1, num_workers=0, sampler=sampler, dataset=dataset)
    backends = [dict(type="LocalVisBackend")]
    out["visualizer"] = dict(type="DetLocalVisualizer", vis_backends=backends, name="visualizer")
    return Config(out)


def simplify(head: ConfigDict, study: Study, experiment: Experiment) -> None:
    """Name MMDetection's own classes in a RoI head's config where they predict the same.

    A training without PCB and without steps leaves an ordinary detector, with any loss, unless
    the loss defines scores that MMDetection lacks.

    Raises:
        UserError: Such a loss is a file of a study, which no installed package holds.
    """
    loss = head.bbox_head.loss_cls
    entry, cls = (
        study.registry.losses[experiment.loss],
        loss_class_of(experiment.loss, study.registry),
    )
    if not experiment.pcb and experiment.paradigm == "plain":
        if head.type == "LOCERoIHead":  # its memory of features serves the training alone
            parameters = inspect.signature(load_class("pcb.heads.loce:LOCERoIHead")).parameters
            for name in set(parameters) - {"self", "kwargs"}:
                head.pop(name, None)
            head.type = "StandardRoIHead"
        if issubclass(cls, SeesawLoss) and cls.get_activation is SeesawLoss.get_activation:
            kept = {key: loss[key] for key in ("num_classes", "p", "q", "eps") if key in loss}
            head.bbox_head.loss_cls = ConfigDict(type="SeesawLoss", **kept)
            return
        plain_scores = cls.get_activation is ClassifierLoss.get_activation
        if plain_scores and cls.extra_channels == 1:
            head.bbox_head.loss_cls = ConfigDict(type="CrossEntropyLoss", use_sigmoid=False)
            return
    if ".py:" in entry.cls:
        raise UserError(
            f"the loss {experiment.loss!r} of {experiment.id} is a class in {entry.cls}, which "
            "an exported config could not import",
            "add the loss to pcb/registry.py (docs/adding-a-row.md), train, and export again",
        )


def uses_plugin(head: ConfigDict) -> bool:
    """Whether the RoI head or its loss is one that `pcb.mmdet` registers."""
    classes = (MODELS.get(head.type), MODELS.get(head.bbox_head.loss_cls.type))
    return any(cls is not None and cls.__module__.startswith("pcb.") for cls in classes)


def portable_weights(config: Config, state: dict) -> dict:
    """Return the weights of the exported detector, which are loaded into it once as a check.

    Args:
        config: Its config.
        state: Names and tensors of the training's checkpoint.
    """
    model = MODELS.build(config.model)
    assert isinstance(model, TwoStageDetector)
    missing, extra = model.load_state_dict(state, strict=False)
    lost = [key for key in extra if not any(part in key for part in TRAINING_ONLY)]
    assert not missing and not lost, f"not exported: {missing[:4]}, {lost[:4]}"
    return model.state_dict()


def palette(count: int) -> list[tuple[int, ...]]:
    """Return `count` colours (RGB, 0 to 255) of which neighbours differ, for MMDetection's plots.

    MMDetection's own palette of COCO ends after 80 classes.
    """
    golden = 0.618034  # steps of the golden ratio spread hues evenly for any number
    colours = (colorsys.hsv_to_rgb(i * golden % 1, 0.75, 0.9) for i in range(count))
    return [tuple(round(255 * part) for part in colour) for colour in colours]


def classes_of(data: LVISIndex) -> list[dict]:
    """Return what a label means: the class's name, id in the file and training images."""
    names, ids = data.classes, data.original_ids
    return [
        {"label": label, "id": ids[label], "name": names[label], "train_images": images}
        for label, images in enumerate(data.image_count)
    ]


def config_text(config: Config, run: str, seed: int) -> str:
    """Return the content of config.py."""
    head = f'"""Exported by `pcb export {run} --seed {seed}`; see {README}."""'
    return f"{head}\n\n{config.pretty_text}"


def readme(study: Study, run: str, seed: int, config: Config, about: dict) -> str:
    """Return the content of README.md: how to use the detector, and what it predicts."""
    experiment = study.experiments[run]
    title = detector_title(study.scale["backbones"][experiment.backbone]["config"], frozen=False)
    imports = config.get("custom_imports", {}).get("imports", [])
    needs = "MMDetection 3, mmcv and mmengine"
    if PLUGIN in imports:
        needs += f", and the package `pcb` (the config imports `{PLUGIN}`)"
    steps = study.registry.paradigms[experiment.paradigm].steps
    if steps > 1:
        scores = f"the last of its {steps} steps (`roi_head.test_cls_step` of the config chooses)"
    else:
        scores = "its classifier"
    variants = [v for v in study.variants(run) if v != "plain" and not v.startswith("step")]
    tables = f" (the tables show this run with {', '.join(variants)} too)" if variants else ""
    calibrated = (
        f"Calibration after training is not part of it{tables}. To calibrate, take scores before "
        "NMS and apply `pcb.calibration`; docs/plugin.md of the repository describes both."
    )
    test = study.scale["test"]
    metrics = (current_metrics(study, run, seed) or {}).get("variants", {}).get("plain", {})
    ap = {key: metrics.get(key) for key in ("AP", "APr", "APc", "APf", "APb")}
    measured = ", ".join(f"{key} {value:.1f}" for key, value in ap.items() if value is not None)
    lines = [
        f"# {run}, seed {seed}",
        "",
        f"Mask R-CNN, {title}, trained on {study.scale['title']}.",
        *([f"On its validation images: {measured} (mask AP; APb of boxes)."] if measured else []),
        "",
        f"Needs {needs}.",
        "",
        "```python",
        "from mmdet.apis import inference_detector, init_detector",
        "",
        f'model = init_detector("{CONFIG}", "{WEIGHTS}", device="cpu")',
        'result = inference_detector(model, "photo.jpg").pred_instances',
        "print(result.scores, result.labels, result.bboxes, result.masks)",
        'print(model.dataset_meta["classes"])',
        "```",
        "",
        f"- **What it predicts**: the scores of {scores}, as trained: the variant `plain`. "
        + calibrated,
        f"- **Detections**: at most {test['max_per_image']} an image with a score above "
        f"{test['score_thr']:g}, as scored in the tables; "
        "`model.test_cfg.rcnn` of the config changes both.",
        f"- **Labels** are 0 to {len(config.test_dataloader.dataset.metainfo.classes) - 1}; "
        f"`{CLASSES}` gives each label's name, category id and number of training images.",
        f"- **Weights**: `{WEIGHTS}` has the weights alone, without the optimiser's state.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | `{value}` |" for key, value in about.items()),
    ]
    return "\n".join(lines) + "\n"
