"""The registry: every loss, paradigm and calibration that an experiment or a table row can name.

One line per method. Everything else follows from it: the names that configs/paper.yaml may use,
the classes that are registered with MMDetection, the constructor arguments of a training, and the
table in docs/methods.md. Classes are named, not imported, so this module never imports torch.

To add a loss of your own without editing this file, see docs/adding-a-row.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType

from pcb.errors import UserError

# What a training knows and a class may take as constructor arguments (`takes` below).
PCB_ARGUMENTS = ("alpha", "momentum", "active", "num_steps", "start_epoch", "absent")
ARGUMENTS = (
    *PCB_ARGUMENTS,
    "soft_labels",  # whether to keep those of online label smoothing too, for a branch
    "instance_counts",  # (C,) training instances of each class
    "hidden",  # units of the refinement MLPs
    "identity_start",  # whether the refinement MLPs start as the identity
    "layer_norm",  # whether logits are normalised before they are fed back
)
NORCAL_GAMMAS = tuple(k / 10 for k in range(1, 11))  # γ = 0 changes nothing: that is `plain`


@dataclass(frozen=True)
class Option:
    """A choice, such as that between the released code and the paper's text.

    Attributes:
        values: Allowed values as a YAML file writes them, the default first.
        from_start: Whether it acts before PCB starts; experiments that share a trunk must agree.
    """

    values: tuple[str | bool | float, ...]
    from_start: bool = False


@dataclass(frozen=True)
class Stage:
    """A part of an experiment's training; it starts from the final weights of the stage before.

    Attributes:
        loss: Name of its classification loss.
        epochs, milestones: Its schedule; None means the study's.
        lr: Factor on the scale's learning rate.
        trained: Prefixes of the parameters that learn; () means all.
        hooks: MMEngine hooks that it needs.
        roi_head: `module:Class` of its RoI head; "": the paradigm's.
    """

    loss: str
    epochs: int | None = None
    milestones: tuple[int, ...] | None = None
    lr: float = 1.0
    trained: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    roi_head: str = ""


@dataclass(frozen=True)
class Entry:
    """A class that a YAML file can name.

    Attributes:
        cls: `module:Class`, or `file.py:Class` in an overlay; "" for mmdet's own.
        title: What it is, with its source.
        takes: Names of `ARGUMENTS` that its constructor takes.
        options: Options of its constructor that an experiment may choose.
    """

    cls: str
    title: str
    takes: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)

    def load(self) -> type:
        """Import the class. Raises `UserError` where it does not exist."""
        return load_class(self.cls)

    @property
    def class_name(self) -> str:
        """The name under which MMDetection knows it."""
        return self.cls.rpartition(":")[2]


@dataclass(frozen=True)
class Loss(Entry):
    """A classification loss.

    Attributes:
        late: Whether it is `softmax` until the epoch in which PCB starts, and may share a trunk.
        second_stage: The stage that follows an ordinary training with softmax, if it has one.
    """

    late: bool = False
    second_stage: Stage | None = None

    @property
    def with_pcb(self) -> bool:
        """Whether it can be combined with PCB."""
        return "alpha" in self.takes

    @property
    def with_steps(self) -> bool:
        """Whether it can be used with R > 1 predictions for each proposal."""
        return "num_steps" in self.takes


@dataclass(frozen=True)
class Paradigm(Entry):
    """A RoI head; `steps` is R, the number of predictions for each proposal."""

    steps: int = 1


@dataclass(frozen=True)
class Calibration(Entry):
    """A transform of test-time scores.

    Attributes:
        statistics_of: Split whose confusion matrix it needs: 'val' (the scored one) or 'train'.
        gammas: Values of its hyper-parameter that are tried; the scorer chooses the best.
    """

    statistics_of: str | None = None
    gammas: tuple[float, ...] = ()


BOX_HEAD = "roi_head.bbox_head."
SPACE = {"space": Option(("full", "fg"))}
# Options of `Regulariser`.
PCB = {"gate": Option(("seen", "epoch")), "update": Option(("each", "last"), from_start=True)}
NORMALISE = {"normalise": Option((True, False), from_start=True)}
START = {"start": Option(("pcb", "first"), from_start=True)}

LOSSES: dict[str, Loss] = {
    "softmax": Loss(
        "pcb.losses.softmax:PCBCrossEntropyLoss",
        "softmax cross entropy; with PCB Eq. 10, 11",
        takes=(*PCB_ARGUMENTS, "soft_labels"),
        options=SPACE | NORMALISE | PCB,
    ),
    "eqlv2": Loss(
        "pcb.losses.eqlv2:PCBEQLv2Loss",
        "equalization loss v2 (Tan et al. 2021); with PCB App. A, Eq. 13-15",
        takes=PCB_ARGUMENTS,
        options={"literal": Option((False, True))} | PCB,
    ),
    "seesaw": Loss(
        "pcb.losses.seesaw:PCBSeesawLoss",
        "Seesaw loss (Wang et al. 2021); with PCB App. A, Eq. 16-18",
        takes=PCB_ARGUMENTS,
        options={
            "factors": Option(("label", "class")),
            "counts": Option(("all", "rank"), from_start=True),
        }
        | NORMALISE
        | PCB,
    ),
    "ls": Loss(
        "pcb.losses.label_smoothing:LabelSmoothingLoss",
        "label smoothing",
        takes=("start_epoch",),
        options={"scope": Option(("fg", "all"))} | SPACE | START,
        late=True,
    ),
    "ols": Loss(
        "pcb.losses.label_smoothing:OnlineLabelSmoothingLoss",
        "online label smoothing (Zhang et al. 2021)",
        takes=("start_epoch",),
        options=SPACE | START,
        late=True,
    ),
    "bags": Loss(
        "pcb.losses.bags:BAGSLoss",
        "balanced group softmax (Li et al. 2020)",
        takes=("instance_counts",),
        second_stage=Stage("bags", 12, (8, 11), lr=0.5, trained=(BOX_HEAD + "fc_cls",)),
    ),
    "loce": Loss(
        "pcb.losses.loce:EquilibriumLoss",
        "loss and feature memory of LOCE (Feng et al. 2021)",
        second_stage=Stage(
            "loce",
            6,
            (3, 5),
            trained=(BOX_HEAD + "fc_cls", BOX_HEAD + "fc_reg", "rpn_head", "roi_head.mask_head"),
            hooks=("LOCEFillHook",),
            roi_head="pcb.heads.loce:LOCERoIHead",
        ),
    ),
}
PARADIGMS: dict[str, Paradigm] = {
    "plain": Paradigm("", "one prediction for each proposal, mmdet's StandardRoIHead"),
    "iterative": Paradigm(
        "pcb.heads.iterative:IterativeRoIHead",
        "the paper's iterative paradigm (§3.3)",
        takes=("hidden", "identity_start", "layer_norm"),
        steps=3,
    ),
    "dsn": Paradigm(
        "pcb.heads.deep_supervision:DeepSupervisionRoIHead", "deep supervision (Table 4)", steps=3
    ),
    "rm": Paradigm(
        "pcb.heads.refinement:RefinementRoIHead",
        "refinement module of CrowdDet (App. C, Table 11)",
        steps=3,
    ),
}
CALIBRATIONS: dict[str, Calibration] = {
    "cm-val": Calibration(
        "pcb.calibration:ConfusionMatrixCalibration",
        "Eq. 6 with the matrix of the split that is scored: an upper bound (Table 1)",
        statistics_of="val",
    ),
    "ms-val": Calibration(
        "pcb.calibration:MeanScoreCalibration",
        "Eq. 8 with the mean scores of the split that is scored: an upper bound (Table 1)",
        statistics_of="val",
    ),
    "cm-train": Calibration(
        "pcb.calibration:ConfusionMatrixCalibration",
        "Eq. 6 with the matrix of the training images in test mode (Table 4)",
        statistics_of="train",
    ),
    "norcal": Calibration(
        "pcb.calibration:NorCal",
        "class counts (Pan et al. 2021), γ chosen by AP from 0 on (Table 8)",
        gammas=NORCAL_GAMMAS,
    ),
    "norcal-positive": Calibration(
        "pcb.calibration:NorCal",
        "the same with γ > 0, so that it can be worse than its base",
        gammas=NORCAL_GAMMAS,
    ),
}


@dataclass(frozen=True)
class Registry:
    """The methods of a study: the shipped ones and those that an overlay adds."""

    losses: Mapping[str, Loss]
    paradigms: Mapping[str, Paradigm]
    calibrations: Mapping[str, Calibration]

    def stages(self, loss: str) -> tuple[Stage, ...]:
        """The trainings behind a loss: one, or plain softmax and then its second stage."""
        second = self.losses[loss].second_stage
        return (Stage("softmax"), second) if second else (Stage(loss),)

    def with_losses(self, losses: Mapping[str, Loss]) -> Registry:
        """Add losses. Raises `UserError` where a name is taken."""
        if taken := sorted(losses.keys() & self.losses.keys()):
            raise UserError(
                f"losses: {taken[0]!r} is one of the shipped losses", "choose another name"
            )
        return replace(self, losses={**self.losses, **losses})


SHIPPED = Registry(LOSSES, PARADIGMS, CALIBRATIONS)


@cache
def load_class(spec: str) -> type:
    """Import `module:Class`, or `path/to/file.py:Class`.

    Raises:
        UserError: The module, the file or the class does not exist.
    """
    source, _, name = spec.rpartition(":")
    fix = "write it as file.py:Class, with the path of the file from the study's YAML file"
    if source.endswith(".py"):
        module = load_file(Path(source), fix)
    else:
        try:
            module = importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise UserError(f"{spec}: {error}", fix) from error
    if not hasattr(module, name):
        raise UserError(f"{source} has no class {name!r}", fix)
    return getattr(module, name)


def load_file(path: Path, fix: str) -> ModuleType:
    """Import a Python file that is in no package.

    Raises:
        UserError: It does not exist, or it cannot be imported: a slip in it, a missing module.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", fix)
    name = f"pcb_study_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise UserError(
            f"{path} cannot be imported: {error}", "install what it imports, or correct the file"
        ) from error
    return module


def markdown() -> str:
    """The registry as the Markdown table that docs/methods.md shows."""
    lines = ["| name in YAML | class | what it is | options |", "|---|---|---|---|"]
    for key, entries in (
        ("loss", LOSSES),
        ("paradigm", PARADIGMS),
        ("variant", CALIBRATIONS),
    ):
        for name, entry in entries.items():
            module, _, cls = entry.cls.partition(":")
            shown = f"`{cls}` (`{module.replace('.', '/')}.py`)" if cls else "–"
            options = "; ".join(
                f"`{option}`: {', '.join(f'`{str(value).lower()}`' for value in choices.values)}"
                for option, choices in entry.options.items()
            )
            lines.append(f"| `{key}: {name}` | {shown} | {entry.title} | {options or '–'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
