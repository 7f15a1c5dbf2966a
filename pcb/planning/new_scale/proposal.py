"""From two annotation files to a scale: its format, and everything else in turn."""

from __future__ import annotations

import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from pcb.data.download import downloads
from pcb.data.lvis.annotations import CORRECT_PATH
from pcb.data.lvis.check import CORRECT_IMAGES, SET_COCO, check_files
from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError
from pcb.files import temporary_folder, write_text
from pcb.planning import plan
from pcb.planning.costs import Costs
from pcb.planning.new_scale.detector import large_detector, small_detector
from pcb.planning.new_scale.own import DETECTORS, Own, check_name, refuse_existing
from pcb.planning.new_scale.tail import long_tail
from pcb.planning.new_scale.text import scale_text, schedule
from pcb.planning.timings import Timings
from pcb.study import fingerprint, load_study
from pcb.study.paths import Paths
from pcb.study.records import write_record

# Of an iteration and of an image's detection at `mini` on an idle core, measured in its published
# runs and in results/benchmarks/infer.json. Features are cached, so the image's size hardly counts.
MINI_SECONDS = {"iteration": 0.05, "image": 0.025}
# Fixes in a scale's YAML, which is not written yet -> the same by options of the command.
BY_OPTION = {
    CORRECT_PATH: "name another file with {options}",
    CORRECT_IMAGES: "correct --images",
    SET_COCO: "add --format coco",
}
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class Proposal:
    """A scale that has not been written.

    Attributes:
        own: What the user said.
        files: Path -> text of the files to write; the scale is the last.
        reasons: What was found and decided: topic -> sentence.
        warnings: What the user should know before running it.
    """

    own: Own
    files: dict[Path, str]
    reasons: dict[str, str]
    warnings: list[str]

    def write(self, force: bool = False) -> None:
        """Write the files. Raises `UserError` as `refuse_existing` does."""
        refuse_existing(self.own, self.files, force)
        for path, text in self.files.items():
            write_text(path, text)

    def report(self) -> str:
        """The reasons, one paragraph for each topic, and the warnings."""
        entries = [*self.reasons.items(), *(("warning", text) for text in self.warnings)]
        return "\n".join(
            textwrap.fill(text, 100, initial_indent=f"{topic:<11}", subsequent_indent=" " * 11)
            for topic, text in entries
        )

    def next_commands(self) -> str:
        """The commands from here to Table 2."""
        own, weights = self.own, Path(self.own.weights)
        scale, config = quote(own.scale_option), quote(f"scale={own.scale_option}")
        commands = [
            f"pcb check-data --scale {scale}",
            f"pcb plan --scale {scale} --measure table02",
            f"snakemake --cores all --config {config} -- table02",
        ]
        if own.device == "cuda" and not weights.exists():
            commands.insert(0, f"pcb download --scale {scale}")
        return "\n".join(f"  {command}" for command in commands)


def propose(own: Own, lists: bool = True) -> Proposal:
    """Read the data and decide on a scale for it.

    Args:
        own: What the user said.
        lists: Write lists of missing and faulty images where `pcb check-data` would write them too;
            nothing else is written.

    Raises:
        UserError: The name cannot be one, the data has faults, or its format is not clear.
    """
    check_name(own)
    if own.device == "cpu" and own.gpus > 1:
        raise UserError(
            f"--gpus {own.gpus}, but the device is cpu", "leave out --gpus, or add --device cuda"
        )
    for option, path in own.files.items():
        if not Path(path).exists():
            raise UserError(f"{path} does not exist", f"correct --{option}")
    if not Path(own.weights).exists() and Path(own.weights).name not in downloads():
        raise UserError(
            f"{own.weights} does not exist",
            "correct --weights, or leave it out: `pcb download` then fetches torchvision's",
        )
    with temporary_folder() as folder, fixed_by_options(own):
        cache = folder / "index"
        train, val = (LVISIndex(path, own.images, cache) for path in (own.train, own.val))
        form, reason = data_format(own, train, val)
        own = replace(own, format=form)
        report = Paths(Path("results") / own.name).data_check(own.dataset) if lists else None
        checked = check_files(own.entry, report, allow_absent=True, cache=cache)
        tail = long_tail(train, val)
        cpu = own.device == "cpu"
        detector = small_detector(own, train, val) if cpu else large_detector(own, train)
        recipe = schedule(own, tail)
    reasons = {"format": reason, **tail.reasons, "detector": detector.reason}
    reasons["schedule"] = recipe.reason
    text = scale_text(own, reasons, tail, detector, recipe)
    reasons["cost"] = cost(own, text, detector.base, {**checked, "repeat_factors": tail.repeats})
    files = {detector.path: detector.text} if detector.text else {}
    # Absent classes are among the reasons.
    warnings = [w for w in checked["warnings"] if "no usable annotation of" not in w]
    return Proposal(own, files | {own.scale_file: text}, reasons, [*warnings, *tail.warnings])


@contextmanager
def fixed_by_options(own: Own) -> Generator[None]:
    """Let the errors inside name options of `pcb new-scale` where they name the scale's YAML."""
    try:
        yield
    except UserError as error:
        what, fix = error.what, error.fix
        named = [option for option, path in own.files.items() if f"{Path(path)}" in what]
        options = " or ".join(f"--{option}" for option in named if option != "images")
        for in_yaml, by_option in BY_OPTION.items():
            text = by_option.format(options=options)
            what, fix = what.replace(in_yaml, text), fix.replace(in_yaml, text)
        raise UserError(what, fix) from error


def data_format(own: Own, train: LVISIndex, val: LVISIndex) -> tuple[str, str]:
    """Decide how the data is scored.

    Returns:
        `coco` or `lvis`, and why.

    Raises:
        UserError: The validation file does not show it, or contradicts the option.
    """
    lacking = {key: val.images_without(key) for key in FEDERATED}
    both = " and ".join(f"`{key}`" for key in FEDERATED)
    options = (
        "add --format coco to count every class in every image, or --format lvis where labels "
        f"are federated (then every image of {val.path} needs both keys)"
    )
    none = all(count == len(val) for count in lacking.values())
    complete = not any(lacking.values())
    if own.format == "lvis" and not complete:
        raise UserError(
            f"{val.path}: --format lvis, but {max(lacking.values())} of {len(val)} images lack "
            + both,
            "add them, or use --format coco to count every class in every image",
        )
    if own.format:
        unused = " (its federated labels are not used)" if own.format == "coco" and not none else ""
        return own.format, f"{own.format}, as you said{unused}"
    if none and any(train.images_without(key) < len(train) for key in FEDERATED):
        raise UserError(
            f"{train.path} has {both}, as LVIS has, but {val.path} has not: the format is not "
            "clear",
            options,
        )
    if none:
        return "coco", f"coco: no image has {both}, so every class counts in every image"
    if not complete:
        raise UserError(
            f"{val.path}: {max(lacking.values())} of {len(val)} images lack {both}, the others "
            "have them: the format is not clear",
            options,
        )
    if not any(val.listed_categories("neg_category_ids")):
        raise UserError(
            f"{val.path}: `neg_category_ids` is empty in every image, so that LVIS's rule would "
            "count no false positive of an absent class: the format is not clear",
            options,
        )
    return "lvis", (
        "lvis: every validation image has federated labels, so a detection of a class counts "
        "only where the class was verified to be present or absent"
    )


def cost(own: Own, text: str, base: str, checked: dict) -> str:
    """What Table 2 of a scale costs, as `pcb plan` estimates it.

    Loading the study also checks the YAML.

    Args:
        own: What the user said.
        text: The scale as YAML.
        base: The shipped detector config that its own inherits.
        checked: The report of `check_files`, by which images are counted.
    """
    with temporary_folder() as folder:
        path = folder / "scale.yaml"
        write_text(path, text)
        detector = {"r50": {"config": str(DETECTORS / base)}}
        study = load_study(path, overrides={"results": str(folder), "backbones": detector})
        identity = {"fingerprint": fingerprint(study.check_job(own.dataset))}
        write_record(study.paths.data_check(own.dataset), {**checked, **identity})
        assumed = MINI_SECONDS if own.device == "cpu" else {}
        costs = Costs(study, Timings.of(study, assumed), ["table02"])
        trainings, epochs = plan.trainings_in(costs.items), costs.epochs(costs.items)
        time = f"at the speed of `mini` {plan.time(costs)}; " if assumed else ""
    command = f"pcb plan --scale {quote(own.scale_option)} --measure table02"
    measure = f"`{command}` measures time and disk"
    return f"Table 2 is {trainings} trainings of {epochs:,} epochs in all; {time}{measure}"
