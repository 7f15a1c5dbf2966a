"""An experiment: the factors that change a training's weights, and the id that follows from them."""

from __future__ import annotations

from dataclasses import dataclass

DATASETS = ("v05", "v1")
BACKBONES = ("r50", "r101")
SAMPLERS = ("random", "rfs")
LOSSES = ("softmax", "eqlv2", "seesaw", "ls", "ols", "bags", "loce")
PARADIGMS = ("plain", "iterative", "dsn", "rm")
REGRESSIONS = ("last", "each")


@dataclass(frozen=True)
class PCB:
    """The regulariser's two hyper-parameters: its weight α (Eq. 11) and the momentum γ of the matrix (Eq. 9)."""

    alpha: float
    gamma: float


@dataclass(frozen=True)
class Experiment:
    """One training of the paper.

    `regression` says in which steps the box loss is taken (paper App. A). `trunk` names the experiment whose first
    epochs this one shares, itself included: everything up to the start of PCB is the same training, run once.
    """

    id: str
    dataset: str
    backbone: str
    sampler: str
    loss: str
    paradigm: str = "plain"
    regression: str = "last"
    pcb: PCB | None = None
    trunk: str | None = None

    @property
    def computed_id(self) -> str:
        """The id that the factors spell: `dataset_backbone_sampler_loss_paradigm[_pcb-aα-gγ]`."""
        paradigm = self.paradigm if self.regression == "last" else f"{self.paradigm}-{self.regression}"
        parts = [self.dataset, self.backbone, self.sampler, self.loss, paradigm]
        if self.pcb:
            parts.append(f"pcb-a{self.pcb.alpha:g}-g{self.pcb.gamma:g}")
        return "_".join(parts)

    @property
    def factors(self) -> dict:
        """Everything that changes the weights, as plain JSON values (not the id, not the trunk)."""
        pcb = {"alpha": self.pcb.alpha, "gamma": self.pcb.gamma} if self.pcb else None
        return {"dataset": self.dataset, "backbone": self.backbone, "sampler": self.sampler, "loss": self.loss,
                "paradigm": self.paradigm, "regression": self.regression, "pcb": pcb}
