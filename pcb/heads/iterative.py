"""The paper's iterative paradigm (§3.3) as a RoI head of MMDetection."""

from __future__ import annotations

from torch import Tensor

from pcb.heads.stepped import Prediction, SteppedRoIHead
from pcb.iterative import IterativePrediction

OLD_NAMES = ("mlp_cls.", "mlp_loc.")  # of parameters, before `IterativePrediction` held them


class IterativeRoIHead(SteppedRoIHead):
    """Predicts R times, each time on features refined by the last prediction.

    `pcb.iterative.IterativePrediction` refines; the box head predicts.

    Args:
        hidden: See `IterativePrediction`.
        layer_norm: See `IterativePrediction`.
        identity_start: See `IterativePrediction`.
        **kwargs: Those of `SteppedRoIHead`.
    """

    def __init__(
        self, *, hidden: int = 512, layer_norm: bool = False, identity_start: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        head = self.bbox_head
        self.iterative = IterativePrediction(
            head.fc_cls.out_features,
            head.fc_reg.out_features,
            head.in_channels,
            head.roi_feat_area,
            self.num_steps,
            hidden,
            layer_norm,
            identity_start,
        )

    def steps(self, roi_feats: Tensor) -> list[Prediction]:
        """Return the predictions of all steps; see `SteppedRoIHead.steps`."""
        return self.iterative(roi_feats, self.bbox_head)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        rename(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def rename(weights: dict[str, Tensor], prefix: str = "roi_head.") -> None:
    """Give the parameters of an older checkpoint their present names, in place.

    Args:
        weights: State dict.
        prefix: The names of the RoI head's parameters begin with it.
    """
    for key in [k for k in weights if k.startswith(tuple(prefix + name for name in OLD_NAMES))]:
        weights[f"{prefix}iterative.{key[len(prefix) :]}"] = weights.pop(key)
