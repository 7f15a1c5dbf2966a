"""The scale as YAML, and the schedule in it."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from math import ceil
from string import Template

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.formatting import counted
from pcb.planning.new_scale.detector import Detector
from pcb.planning.new_scale.own import MARK, Own
from pcb.planning.new_scale.tail import Tail, rounded

# A training should have about as many iterations as at `mini` and `midi`, in at most this many
# times the paper's 24 epochs.
ITERATIONS = {"cpu": 600, "cuda": 6000}
LONGEST = 10
LONG_TRAINING = 30_000  # iterations from which the refinement MLPs may start from noise
SMALL_WEIGHTS = "pcb/synthetic/weights/mini_r18-ae436d9d.pth"


@dataclass(frozen=True)
class Recipe:
    """A schedule.

    Attributes:
        epochs: Epochs.
        milestones: Epochs after which the learning rate drops.
        pcb_start: First epoch with PCB, 1-based.
        batch: Images of a batch.
        iterations: Iterations of an epoch without repeats.
        reason: Why.
    """

    epochs: int
    milestones: tuple[int, ...]
    pcb_start: int
    batch: int
    iterations: int
    reason: str


def schedule(own: Own, tail: Tail) -> Recipe:
    """The paper's schedule, stretched where the data gives few iterations."""
    images = tail.repeats["images"]
    batch = min(8, images) if own.device == "cpu" else 16
    if own.device == "cuda" and batch % own.gpus:
        raise UserError(
            f"a batch of {batch} images cannot be shared by {own.gpus} GPUs",
            "let --gpus be 1, 2, 4, 8 or 16",
        )
    iterations = max(1, ceil(images / batch))
    stretch = min(LONGEST, max(1, ceil(ITERATIONS[own.device] / (24 * iterations))))
    epochs = own.epochs or 24 * stretch
    if epochs < 2:
        raise UserError("--epochs 1 leaves no epoch before PCB", "give 2 epochs or more")
    drops = [max(1, min(round(epochs * share), epochs - 1)) for share in (16 / 24, 22 / 24)]
    milestones = tuple(dict.fromkeys(drops))
    kept = "the paper's" if epochs == 24 else "the paper's 24 epochs (drops after 16 and 22)"
    why = "as you said" if own.epochs else f"{ITERATIONS[own.device]:,} iterations are aimed at"
    changed = "" if epochs == 24 else f" times {epochs / 24:.2g}, {why}"
    reason = (
        f"{epochs} epochs of {counted(iterations, 'iteration')} of "
        f"{counted(batch, 'image')} (more with RFS), PCB from epoch {milestones[0] + 1}, "
        f"where the learning rate drops first: {kept}{changed}"
    )
    return Recipe(epochs, milestones, milestones[0] + 1, batch, iterations, reason)


TEXT = """\
$intro
name: $name
title: $title
results: results
seeds: [0]  # [0, 1, 2] trains everything three times, for intervals

datasets:
  $dataset:
    title: $title
$format_reason
    format: $format
    in_place_of: v05  # tables show this data where the paper has LVIS v0.5
$paths
$groups

$classes
allow_absent_classes: $absent
methods: [softmax, rfs, eqlv2, seesaw]  # base methods, as in Table 2; also bags and loce

$schedule_reason
schedule: {epochs: $epochs, milestones: $milestones, pcb_start_epoch: $pcb_start}

$detector
backbones:
  r50: {config: $config, weights: $weights}

train:  # of the scale `$like`, but for the two last
  batch_size: $batch
  lr: 0.02
  lr_drop: $lr_drop
  clip_grad: $clip_grad
  amp: $amp
  warmup_iters: $warmup
$rfs_reason
  rfs_threshold: $rfs

pcb:
  # Factor on the memory 1/(1-γ) of the confusion matrix: how often a class appears in a training,
  # against LVIS, by the thresholds of the groups and the number of epochs.
  ema_memory_scale: $memory
  hidden: $hidden  # units of the refinement MLPs
  # The refinement MLPs start at X^{r+1} = X^r. The released code starts them from noise, from which
  # a short training does not recover.
  identity_start: $identity_start

test:
  score_thr: $score_thr
  max_per_image: $per_image
  # Detections that inference keeps for other protocols (docs/methods.md#protocols).
  keep_score_thr: $keep_score_thr
  keep_per_image: $keep_per_image

hardware:
$hardware
"""
# What follows from the device: the scales `mini` and `lvis`.
RECIPES = {
    "cpu": dict(like="mini", lr_drop=0.3, clip_grad=10, amp="none", hidden=128)
    | dict(score_thr="1.0e-3", keep_score_thr="1.0e-4"),
    "cuda": dict(like="lvis", lr_drop=0.1, clip_grad="null", amp="fp16", hidden=512)
    | dict(score_thr="1.0e-4", keep_score_thr="1.0e-5"),
}


def scale_text(
    own: Own, reasons: dict[str, str], tail: Tail, detector: Detector, recipe: Recipe
) -> str:
    """The content of the YAML file.

    Args:
        own: What the user said.
        reasons: Topic -> why, for comments.
        tail: Groups and repeats.
        detector: The detector.
        recipe: The schedule.
    """
    cpu = own.device == "cpu"
    iterations = recipe.epochs * recipe.iterations
    inside = detector.path.is_relative_to(ROOT)
    config = detector.path.relative_to(ROOT) if inside else detector.path
    per_image = 100 if own.format == "coco" else 300
    groups = commented(reasons["groups"], 4)
    if tail.written:
        groups += f"\n    thresholds: {list(tail.thresholds)}"
    intro = (
        f"{MARK} for {own.train} and {own.val}. It runs as it is; edit what you know better. "
        "Relative paths are from the folder in which the commands run."
    )
    return Template(TEXT).substitute(
        RECIPES[own.device],
        intro=commented(intro),
        name=own.name,
        title=json.dumps(own.title or own.name, ensure_ascii=False),
        dataset=own.dataset,
        format_reason=commented(reasons["format"], 4),
        format=own.format,
        paths="\n".join(f"    {key}: {quoted(path)}" for key, path in own.files.items()),
        groups=groups,
        classes=commented("Classes: " + reasons["classes"]),
        absent="true" if tail.absent else "false",
        schedule_reason=commented(reasons["schedule"]),
        epochs=recipe.epochs,
        milestones=list(recipe.milestones),
        pcb_start=recipe.pcb_start,
        detector=commented(reasons["detector"]),
        config=quoted(str(config)),
        weights=quoted(SMALL_WEIGHTS if cpu else own.weights),
        batch=recipe.batch,
        warmup=30 if cpu else min(500, max(1, iterations // 20)),
        rfs_reason=commented("RFS: " + reasons["RFS"], 2),
        rfs=f"{tail.rfs_threshold:g}",
        memory=f"{rounded(min(1, tail.frequency * recipe.epochs / 24)):g}",
        identity_start="false" if iterations >= LONG_TRAINING and not cpu else "true",
        per_image=per_image,
        keep_per_image=3 * per_image,
        hardware=hardware(own, detector),
    )


def hardware(own: Own, detector: Detector) -> str:
    """The section `hardware`: that of `mini`, or that of `lvis` for this number of GPUs."""
    if own.device == "cpu":
        lines = ["device: cpu", "channels_last: true", "gpus_per_job: 0", "threads_per_job: 1"]
        lines += ["workers: 0", "mem_mb: 2500"]
    else:
        lines = ["device: cuda", f"gpus_per_job: {own.gpus}"]
        if own.gpus == 1 and not detector.text:
            lines.append("accumulate: 2  # 1 where the GPU holds 16 images of 1333x800 at once")
        lines += [f"threads_per_job: {max(4, 2 * own.gpus)}", "workers: 4"]
        lines.append(f"mem_mb: {8000 * (1 + own.gpus)}")
    return "\n".join(f"  {line}" for line in lines)


def quoted(text: str) -> str:
    """A text as YAML reads it back, with any characters."""
    return json.dumps(text, ensure_ascii=False)


def commented(text: str, indent: int = 0) -> str:
    """A text as a comment of YAML, at most 100 columns wide."""
    prefix = " " * indent + "# "
    return textwrap.fill(text, 100, initial_indent=prefix, subsequent_indent=prefix)
