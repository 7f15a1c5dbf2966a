"""An experiment: the factors that change a training's weights, and the id that follows from them."""

from __future__ import annotations

from dataclasses import dataclass

LATE_LOSSES = (
    "ls",
    "ols",
)  # soft labels that, like PCB, replace one-hot ones only from epoch 17 on: before, they are `softmax`


@dataclass(frozen=True)
class PCB:
    """The regulariser's two hyper-parameters: its weight α (Eq. 11) and the momentum γ of the matrix (Eq. 9)."""

    alpha: float
    gamma: float = 0.99


@dataclass(frozen=True)
class Experiment:
    """One training of the paper; `workflow/schemas/paper.schema.json` lists what each factor may be.

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

    @classmethod
    def read(cls, key: str, spec: dict) -> Experiment:
        """From one line of configs/paper.yaml."""
        return cls(key, **{**spec, "pcb": PCB(**spec["pcb"]) if spec.get("pcb") else None})

    @property
    def computed_id(self) -> str:
        """The id that the factors spell: `dataset_backbone_sampler_loss_paradigm[_pcb-aα-gγ]`."""
        paradigm = (
            self.paradigm if self.regression == "last" else f"{self.paradigm}-{self.regression}"
        )
        parts = [self.dataset, self.backbone, self.sampler, self.loss, paradigm]
        if self.pcb:
            parts.append(f"pcb-a{self.pcb.alpha:g}-g{self.pcb.gamma:g}")
        return "_".join(parts)

    @property
    def factors(self) -> dict:
        """Everything that changes the weights, as plain JSON values (not the id, not the trunk)."""
        pcb = {"alpha": self.pcb.alpha, "gamma": self.pcb.gamma} if self.pcb else None
        return {
            "dataset": self.dataset,
            "backbone": self.backbone,
            "sampler": self.sampler,
            "loss": self.loss,
            "paradigm": self.paradigm,
            "regression": self.regression,
            "pcb": pcb,
        }

    @property
    def early_factors(self) -> dict:
        """The factors that act before PCB starts: experiments with equal ones may share a trunk."""
        loss = "softmax" if self.loss in LATE_LOSSES else self.loss
        return {**self.factors, "loss": loss, "pcb": None}
