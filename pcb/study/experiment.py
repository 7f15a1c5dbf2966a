"""An experiment: the factors that change a training's weights, and the id that they spell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pcb.registry import Registry


@dataclass(frozen=True)
class PCB:
    """The two hyper-parameters of the regulariser.

    Attributes:
        alpha: α, its weight (Eq. 11).
        gamma: γ, the momentum of the confusion matrix (Eq. 9).
    """

    alpha: float
    gamma: float = 0.99


@dataclass(frozen=True)
class Experiment:
    """One training of the paper, a line of configs/paper.yaml.

    Attributes:
        id: `computed_id`, which is also its key in the YAML file.
        dataset, backbone: Keys of the scale's `datasets` and `backbones`.
        sampler: 'random' or 'rfs' (repeat factor sampling).
        loss, paradigm: Names in `pcb.registry`.
        regression: Steps in which the box loss is taken, 'last' (Eq. 19) or 'each' (Eq. 12).
        pcb: The regulariser; None for a base method.
        options: Options of the paper's text (`Loss.options` in the registry), without defaults.
        trunk: Experiment whose first epochs this one shares, itself included: up to the start of
            PCB they are the same training, run once. None: it trains all its epochs itself.
    """

    id: str
    dataset: str
    backbone: str
    sampler: str
    loss: str
    paradigm: str = "plain"
    regression: str = "last"
    pcb: PCB | None = None
    options: Mapping[str, str | bool | float] = field(default_factory=dict, hash=False)
    trunk: str | None = None

    @classmethod
    def read(cls, key: str, spec: dict) -> Experiment:
        """Make an experiment from its line in configs/paper.yaml."""
        factors: dict[str, Any] = dict(spec)
        if spec.get("pcb"):
            factors["pcb"] = PCB(**spec["pcb"])
        return cls(key, **factors)

    @property
    def computed_id(self) -> str:
        """The factors as `dataset_backbone_sampler_loss_paradigm[_pcb-aα-gγ][_option-value]`."""
        paradigm = self.paradigm if self.regression == "last" else f"{self.paradigm}-each"
        names = [self.dataset, self.backbone, self.sampler, self.loss, paradigm]
        if self.pcb:
            names.append(f"pcb-a{self.pcb.alpha:g}-g{self.pcb.gamma:g}")
        names += [f"{key}-{value}".lower() for key, value in sorted(self.options.items())]
        return "_".join(names)

    @property
    def factors(self) -> dict:
        """Everything that changes the weights, as JSON values: neither the id nor the trunk."""
        pcb = {"alpha": self.pcb.alpha, "gamma": self.pcb.gamma} if self.pcb else None
        options = {"options": dict(self.options)} if self.options else {}
        return {
            "dataset": self.dataset,
            "backbone": self.backbone,
            "sampler": self.sampler,
            "loss": self.loss,
            "paradigm": self.paradigm,
            "regression": self.regression,
            "pcb": pcb,
            **options,
        }

    def early_factors(self, registry: Registry) -> dict:
        """The factors that act before PCB starts; experiments with equal ones may share a trunk."""
        loss = registry.losses[self.loss]
        early = {k: v for k, v in self.options.items() if loss.options[k].from_start}
        factors = {**self.factors, "loss": "softmax" if loss.late else self.loss, "pcb": None}
        factors.pop("options", None)
        return {**factors, "options": early} if early else factors
