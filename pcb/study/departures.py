"""Departures of a scale from the paper's, found by comparing configurations.

`departures(scale)` compares a scale with configs/scale/lvis.yaml, and its detector configs with
those of LVIS, setting by setting. A differing setting is covered by a `Rule`, which names both
values in words, or listed as `key: value (LVIS: value)`, or declared in `NO_DEPARTURE`. So none
can be forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pcb.files import ROOT
from pcb.frequency import THRESHOLDS
from pcb.study.detector_config import (
    Settings,
    backbone,
    detector_title,
    flatten,
    frozen_parts,
    image_size,
    read_settings,
)
from pcb.study.load import PAPER, read_yaml

LVIS = ROOT / "configs/scale/lvis.yaml"
UNSET = "not set"
GROUPS = ("Data", "Detector", "Training", "PCB", "Testing", "Other")
SPLITS = ("train", "test")  # of a detector config: its two pipelines and its two sets of thresholds

# Settings that change no result, or whose content is compared elsewhere.
NO_DEPARTURE = (
    *("name", "title", "results", "seeds", "notes", "hardware.*"),
    "methods",  # which rows there are
    *("datasets.*.train", "datasets.*.val", "datasets.*.images"),  # `check-data` reads the files
    *("backbones.*.config", "backbones.*.sha256"),  # the configs themselves are compared
    *("custom_imports.*", "feature_cache"),  # the cache returns what would be computed
    # The scale's `test` replaces these two (pcb/training/build.py).
    *("model.test_cfg.rcnn.score_thr", "model.test_cfg.rcnn.max_per_img"),
)


@dataclass(frozen=True)
class Rule:
    """How to put a difference into words: `label value (LVIS: value)`.

    Attributes:
        group: One of `GROUPS`.
        label: Name of what the settings determine.
        keys: Patterns of the settings that the words account for; `*` also matches dots.
        describe: The value in words.
        equal_words_suffice: Whether there is no departure where the words are equal although
            the settings differ. Otherwise the settings are then listed by key.
    """

    group: str
    label: str
    keys: tuple[str, ...]
    describe: Callable[[Settings], str]
    equal_words_suffice: bool = False


@dataclass(frozen=True)
class Departure:
    """A difference from the LVIS scale.

    Attributes:
        group: One of `GROUPS`.
        label: That of the rule, or the setting's path.
        sentence: The difference in words, with both values; empty where it has no effect.
        keys: The settings that it accounts for; those of a detector begin with its backbone.
        values: Ours and LVIS's in words, as in the sentence.
        backbones: Those that it concerns, where others do not depart so.
    """

    group: str
    label: str
    sentence: str
    keys: tuple[str, ...]
    values: tuple[str, str] = ("", "")
    backbones: str = ""


def departures(scale: dict, backbones: Iterable[str] | None = None) -> list[str]:
    """The departures of a scale from the LVIS scale, one line for each group of settings.

    Args:
        scale: A scale as `Study.scale` holds it.
        backbones: Backbones whose detectors and weights count; None: all of the scale.

    Returns:
        Lines such as `Training: batch size 8 (LVIS: 16); warm-up ...`, in the order of `GROUPS`.
        Empty for the LVIS scale, and for one that differs from it in hardware or paths alone.
    """
    listed = [d for d in compare(scale, backbones) if d.sentence]
    groups = {g: [d.sentence for d in listed if d.group == g] for g in GROUPS}
    return [f"{group}: {'; '.join(lines)}" for group, lines in groups.items() if lines]


def table(scale: dict, backbones: Iterable[str] | None = None) -> list[dict]:
    """The same as a table.

    Returns:
        Of each group its `name` and `lines`, each with `what`, and the values `here` and at `lvis`.
    """
    out: dict[str, list[dict]] = {}
    for d in compare(scale, backbones):
        if d.sentence:
            what = f"{d.backbones}: {d.label}" if d.backbones else d.label
            line = {"what": what.rstrip(":"), "here": d.values[0], "lvis": d.values[1]}
            out.setdefault(d.group, []).append(line)
    return [{"name": name, "lines": lines} for name, lines in out.items()]


def unstated() -> str:
    """What the LVIS scale takes from the released configs because the paper does not state it."""
    train = read_yaml(LVIS)["train"]
    return (
        f"warm-up of {show(train['warmup_iters'])} iterations, {train['amp']} and the RFS "
        f"threshold {show(train['rfs_threshold'])} of the LVIS recipe are those of the released "
        "configs; the paper states none of them"
    )


def compare(scale: dict, backbones: Iterable[str] | None = None) -> list[Departure]:
    """Every departure of a scale with the settings that it accounts for, in the order of rules."""
    # The order must not be that of the mapping: study.json, which jobs read, holds it sorted.
    compared = sorted(scale["backbones"] if backbones is None else set(backbones), key=natural)
    scale, reference = (with_backbones(s, compared) for s in (scale, read_yaml(LVIS)))
    if "schedule" in scale:
        reference["schedule"] = read_yaml(PAPER)["schedule"]
    listed = explain(flatten(scale), flatten(reference), SCALE_RULES)
    of_backbones: dict[tuple[str, str, str, tuple[str, str]], dict[str, tuple[str, ...]]] = {}
    for name in compared:
        ours, lvis = (read_settings(s["backbones"][name]["config"]) for s in (scale, reference))
        for d in explain(ours, lvis, DETECTOR_RULES):
            same = of_backbones.setdefault((d.group, d.label, d.sentence, d.values), {})
            same[name] = tuple(f"{name}.{key}" for key in d.keys)
    for (group, label, sentence, values), keys in of_backbones.items():
        some = " and ".join(keys) if len(keys) < len(compared) else ""
        if sentence and some:
            sentence = f"{some}: {sentence}"
        listed.append(Departure(group, label, sentence, sum(keys.values(), ()), values, some))
    order = {rule.label: index for index, rule in enumerate((*SCALE_RULES, *DETECTOR_RULES))}
    return sorted(listed, key=lambda d: (GROUPS.index(d.group), order.get(d.label, len(order))))


def natural(name: str) -> tuple[int, str]:
    """A key that sorts r50 before r101."""
    return len(name), name


def with_backbones(scale: dict, names: Iterable[str]) -> dict:
    """A scale with some of its backbones, in the given order."""
    return {**scale, "backbones": {name: scale["backbones"][name] for name in names}}


def explain(ours: Settings, lvis: Settings, rules: tuple[Rule, ...]) -> list[Departure]:
    """Put each difference of two sets of settings into words, by the first rule that covers it."""
    compared = sorted(key for key in {**lvis, **ours} if not matches(key, NO_DEPARTURE))
    remaining = [key for key in compared if ours.get(key, UNSET) != lvis.get(key, UNSET)]
    explained = []
    for rule in rules:
        covered = tuple(key for key in remaining if matches(key, rule.keys))
        if not covered:
            continue
        try:
            values = rule.describe(ours), rule.describe(lvis)
        except (KeyError, TypeError):  # a detector of another structure
            continue
        if values[0] != values[1]:
            sentence = f"{rule.label} {values[0]} (LVIS: {values[1]})"
        elif rule.equal_words_suffice:
            sentence = ""
        else:
            continue
        explained.append(Departure(rule.group, rule.label, sentence, covered, values))
        remaining = [key for key in remaining if key not in covered]
    for key in remaining:
        values = show(ours.get(key, UNSET)), show(lvis.get(key, UNSET))
        sentence = "{}: {} (LVIS: {})".format(key, *values)
        explained.append(Departure("Other", key, sentence, (key,), values))
    return explained


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether the path of a setting is matched by one of the patterns; `*` also matches dots."""
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def detectors(scale: dict, backbones: Iterable[str]) -> list[dict[str, str]]:
    """The detectors of some backbones: ours in short and in full, and the paper's.

    Args:
        scale: A scale as `Study.scale` holds it.
        backbones: Keys of its `backbones`.

    Returns:
        For each one `name` and `title` (without and with its frozen parts) and `paper`.
    """
    reference = read_yaml(LVIS)["backbones"]
    out = []
    for key in dict.fromkeys(backbones):
        config = scale["backbones"][key]["config"]
        out.append(
            {
                "name": detector_title(config, frozen=False),
                "title": detector_title(config),
                "paper": detector_title(reference[key]["config"]),
            }
        )
    return out


def data_title(scale: dict, datasets: Iterable[str] | None = None) -> str:
    """The name of data: `emoji-LVIS` where they are generated, own data sets by their titles.

    Args:
        scale: A scale as `Study.scale` holds it.
        datasets: The data sets; None: all of the scale.
    """
    chosen = scale["datasets"] if datasets is None else dict.fromkeys(datasets)
    other = "emoji-LVIS" if "synthetic" in scale else scale["title"]
    titles = [scale["datasets"][key].get("title", other) for key in chosen]
    return " and ".join(dict.fromkeys(titles))


# Values in words ----------------------------------------------------------------------------------


def show(value: object) -> str:
    """A setting as a page prints it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show, value))
    return str(value)


def single(group: str, label: str, key: str) -> Rule:
    """A rule about one setting."""
    return Rule(group, label, (key,), lambda settings: show(settings.get(key, UNSET)))


def images(settings: Settings) -> str:
    """The images of a scale."""
    drawn = {k.removeprefix("synthetic."): show(v) for k, v in settings.items()}
    if "train_images" not in drawn:
        return "the photographs of the release"
    return (
        f"drawn scenes of {drawn.get('classes', '60')} classes, {drawn['train_images']} for "
        f"training and {drawn['val_images']} for validation, {drawn['size']} px with objects of "
        f"{drawn.get('sprite', '28, 48').replace(', ', ' to ')} px, {drawn.get('tail', '1')} to "
        f"{drawn['head']} training images a class, unseen drawing styles outside training with "
        f"probability {drawn.get('novel_styles', '0')}"
    )


def data_sets(settings: Settings) -> str:
    """The data sets: LVIS's by their version, others by title and format."""
    names = []
    for key in dict.fromkeys(key.split(".")[1] for key in settings if key.startswith("datasets.")):
        entry = {k: settings.get(f"datasets.{key}.{k}") for k in ("version", "title", "format")}
        own = f"{entry['title']} in {(entry['format'] or 'lvis').upper()} format"
        names.append(f"LVIS {entry['version']}" if entry["version"] else own)
    return " and ".join(sorted(names))


def frequency_groups(settings: Settings) -> str:
    """The training images up to which a class is rare and common."""
    own = [value for key, value in settings.items() if matches(key, ("datasets.*.thresholds",))]
    pairs = own or [settings.get("synthetic.thresholds", THRESHOLDS)]
    return "; ".join(f"{show(rare)} and {show(common)}" for rare, common in pairs)


def shown_classes(settings: Settings) -> str:
    """How often validation shows the classes of each group."""
    if "synthetic.val_images" not in settings:
        return (
            "a rare class in one or two of 5,000 images, a frequent one in about 42, and 3.0 "
            "classes an image"
        )
    # 4.75 is PAIRS_PER_SCENE of pcb/synthetic/generate.py, a higher layer; a test compares them.
    return (
        "all classes in equally many images, the same measurement with less noise, and 4.75 "
        "classes an image"
    )


def rare_classes(settings: Settings) -> str:
    """How it was decided which classes are rare, and their share of the classes that AP averages.

    Source: LVIS's share fits AP as a mean of AP_r, AP_c and AP_f in the paper's 40 rows on v0.5,
    0.145, 0.482 and 0.372: val does not show every rare class.
    """
    if "synthetic.head" not in settings:
        return "by how often photographs show them, 14.5 % of the classes in AP on v0.5"
    classes, tail = (settings.get(f"synthetic.{k}", v) for k, v in (("classes", 60), ("tail", 1)))
    fall = settings["synthetic.head"] / tail
    counts = [round(tail * fall ** (rank / (classes - 1))) for rank in range(classes)]
    share = sum(count <= settings["synthetic.thresholds"][0] for count in counts) / classes
    how = "so that each group is equally difficult" if classes == 60 else "at random"
    return f"{how}, {100 * share:.1f} % of the classes in AP"


def negative_categories(settings: Settings) -> str:
    """Number and choice of the negative categories of an image."""
    if "synthetic.negatives.per_image" not in settings:
        return (
            "9.4 of 1,230, about 2 % of them look-alikes of something shown, "
            "a rare class a third as often as a frequent one"
        )
    count, share = (settings[f"synthetic.negatives.{k}"] for k in ("per_image", "lookalikes"))
    return (
        f"{show(count)} of {show(settings.get('synthetic.classes', 60))}, {100 * share:g} % of "
        "them look-alikes of something shown, classes of all groups equally often"
    )


def images_for_gamma(settings: Settings) -> str:
    """The images besides validation's on which γ of NorCal is chosen."""
    if not any(matches(key, ("datasets.*.dev",)) for key in settings):
        return "a sample of the training images"
    count = settings.get("synthetic.dev_images")
    return f"{show(count)} images of a further split" if count else "a further split"


def weight_files(settings: Settings) -> list[str]:
    """The starting weights of all backbones, as the scale writes them."""
    return [value for key, value in settings.items() if matches(key, ("backbones.*.weights",))]


def weights(settings: Settings) -> str:
    """The starting weights of all backbones, by name and origin."""
    names = []
    for path in map(Path, weight_files(settings)):
        if path.name in ("pretrain", "random"):
            origin = {"pretrain": "pretrained here", "random": "random"}[path.name]
        elif "synthetic" in path.parts:
            origin = f"{path.name}, pretrained on drawn scenes of other classes"
        else:
            torchvision = re.fullmatch(r"resnet\d+-[0-9a-f]{8}\.pth", path.name)
            origin = f"{path.name}, pretrained on ImageNet" if torchvision else path.name
        names.append(origin)
    # "a, pretrained on b and c, pretrained on b" is "a and c, pretrained on b".
    *first, last = dict.fromkeys(names)
    shared = last.partition(",")[2]
    return " and ".join([*(name.removesuffix(f",{shared}") for name in first), last])


def pretraining(settings: Settings) -> str:
    """The recipe of the pretraining, if a backbone of the scale uses it."""
    if "pretrain" not in weight_files(settings):
        return "none"
    return (
        f"of {show(settings['synthetic.pretrain_images'])} scenes, "
        f"{show(settings['pretrain.iterations'])} iterations of "
        f"{show(settings['pretrain.batch_size'])} with AdamW, learning rate "
        f"{show(settings['pretrain.lr'])}, weight decay {show(settings['pretrain.weight_decay'])}"
    )


def scaled_momentum(settings: Settings) -> str:
    """What γ = 0.99 becomes at the scale (`Study.scaled_gamma`)."""
    return f"{max(0.0, 1 - 0.01 / settings['pcb.ema_memory_scale']):.4g}"


def in_both(train: str, test: str) -> str:
    """A value of training and testing, once where it is the same."""
    return train if train == test else f"{train} in training, {test} in testing"


def pyramid(settings: Settings) -> str:
    """Channels and levels of FPN and RPN."""
    neck, rpn = settings["model.neck.out_channels"], settings["model.rpn_head.feat_channels"]
    return f"{show(neck)} and {show(rpn)}, {settings['model.neck.num_outs']} levels"


def anchors(settings: Settings) -> str:
    """Scales, ratios and strides of the anchors."""
    path = "model.rpn_head.anchor_generator"
    return ", ".join(
        f"{name} [{show(settings[f'{path}.{name}'])}]" for name in ("scales", "ratios", "strides")
    )


def proposals(settings: Settings) -> str:
    """Proposals of an image, and candidates before suppression."""
    counts = []
    for path in ("model.train_cfg.rpn_proposal", "model.test_cfg.rpn"):
        count, candidates = (show(settings[f"{path}.{key}"]) for key in ("max_per_img", "nms_pre"))
        counts.append(f"{count} of {candidates} a level")
    return in_both(*counts)


def roi_features(head: str) -> Rule:
    """The rule about the RoIAlign of a head, `bbox` or `mask`."""
    path = f"model.roi_head.{head}_roi_extractor"

    def describe(settings: Settings) -> str:
        size = settings[f"{path}.roi_layer.output_size"]
        samples = settings[f"{path}.roi_layer.sampling_ratio"] or "adaptive"
        strides = show(settings[f"{path}.featmap_strides"])
        return f"{size}x{size} from strides [{strides}], sampling ratio {samples}"

    name = {"bbox": "box", "mask": "mask"}[head]
    options = ("featmap_strides", "roi_layer.output_size", "roi_layer.sampling_ratio")
    keys = tuple(f"{path}.{option}" for option in options)
    return Rule("Detector", f"features of the {name} head:", keys, describe)


def mask_head(settings: Settings) -> str:
    """Masks and convolutions of the mask head."""
    path, side = "model.roi_head.mask_head", settings["model.train_cfg.rcnn.mask_size"]
    convolutions, channels = settings[f"{path}.num_convs"], settings[f"{path}.conv_out_channels"]
    return f"{side}x{side} from {convolutions} convolutions of {channels} channels"


SYNTHETIC = (
    *("seed", "classes", "size", "sprite", "train_images"),
    "novel_styles",
)

SCALE_RULES = (
    Rule(
        "Data",
        "data sets:",
        tuple(f"datasets.*.{key}" for key in ("version", "title", "format", "in_place_of")),
        data_sets,
    ),
    Rule("Data", "images are", tuple(f"synthetic.{key}" for key in SYNTHETIC), images),
    Rule(
        "Data",
        "training images up to which a class is rare and common:",
        ("synthetic.thresholds", "datasets.*.thresholds"),
        frequency_groups,
        equal_words_suffice=True,
    ),
    Rule(
        "Data",
        "rare classes are chosen",
        ("synthetic.head", "synthetic.tail"),
        rare_classes,
    ),
    Rule(
        "Data",
        "validation shows",
        ("synthetic.val_images",),
        shown_classes,
    ),
    Rule(
        "Data",
        "classes verified to be absent from a validation image:",
        ("synthetic.negatives.*",),
        negative_categories,
    ),
    Rule(
        "Data",
        "γ of NorCal is also chosen on",
        ("datasets.*.dev", "synthetic.dev_images"),
        images_for_gamma,
    ),
    Rule(
        "Training",
        "starting weights:",
        ("backbones.*.weights",),
        weights,
        equal_words_suffice=True,  # only the folder differs
    ),
    Rule(
        "Training",
        "pretraining",
        ("pretrain.*", "synthetic.pretrain_images"),
        pretraining,
        equal_words_suffice=True,  # a recipe that no backbone uses
    ),
    single("Training", "epochs", "schedule.epochs"),
    single("Training", "learning rate drops after the epochs", "schedule.milestones"),
    single("Training", "PCB acts from epoch", "schedule.pcb_start_epoch"),
    single("Training", "batch size", "train.batch_size"),
    single("Training", "learning rate", "train.lr"),
    single("Training", "learning rate drops by the factor", "train.lr_drop"),
    single("Training", "warm-up iterations", "train.warmup_iters"),
    single("Training", "gradients clipped at norm", "train.clip_grad"),
    single("Training", "mixed precision", "train.amp"),
    single("Training", "RFS threshold", "train.rfs_threshold"),
    Rule("PCB", "γ = 0.99 acts as", ("pcb.ema_memory_scale",), scaled_momentum),
    single("PCB", "hidden units of the refinement MLPs", "pcb.hidden"),
    single("PCB", "refinement MLPs start as the identity:", "pcb.identity_start"),
    single("Testing", "score threshold", "test.score_thr"),
    single("Testing", "detections an image, at most", "test.max_per_image"),
    single("Testing", "score threshold of other protocols", "test.keep_score_thr"),
    single("Testing", "detections an image kept for other protocols", "test.keep_per_image"),
)

DETECTOR_RULES = (
    Rule(
        "Detector",
        "backbone",
        # The channels that enter the FPN follow from the backbone.
        ("model.backbone.depth", "model.backbone.base_channels", "model.neck.in_channels"),
        backbone,
    ),
    Rule(
        "Detector",
        "frozen parts:",
        ("model.type", "model.backbone.frozen_stages"),
        frozen_parts,
    ),
    Rule(
        "Detector",
        "image size",
        tuple(f"{split}_pipeline.Resize.scale*" for split in SPLITS),
        lambda settings: in_both(*(image_size(settings, split) for split in SPLITS)),
    ),
    Rule(
        "Detector",
        "channels of FPN and RPN",
        (
            *("model.neck.out_channels", "model.neck.num_outs", "model.rpn_head.*_channels"),
            # The channels that enter the heads follow from the FPN.
            *("model.roi_head.*_roi_extractor.out_channels", "model.roi_head.*_head.in_channels"),
        ),
        pyramid,
    ),
    Rule("Detector", "anchors:", ("model.rpn_head.anchor_generator.*",), anchors),
    Rule(
        "Detector",
        "proposals an image:",
        tuple(
            f"model.{path}.{key}"
            for path in ("train_cfg.rpn_proposal", "test_cfg.rpn")
            for key in ("max_per_img", "nms_pre")
        ),
        proposals,
    ),
    roi_features("bbox"),
    single("Detector", "width of the box head", "model.roi_head.bbox_head.fc_out_channels"),
    roi_features("mask"),
    Rule(
        "Detector",
        "masks:",
        (
            *("model.roi_head.mask_head.num_convs", "model.roi_head.mask_head.conv_out_channels"),
            "model.train_cfg.rcnn.mask_size",
        ),
        mask_head,
    ),
    single("Training", "RoIs sampled an image", "model.train_cfg.rcnn.sampler.num"),
    single("Training", "anchors sampled for the RPN's loss", "model.train_cfg.rpn.sampler.num"),
)
