"""The regulariser that the three PCB losses share: the matrix, when it acts, and how strongly.

A loss calls `update_confusion` with its foreground probabilities and `alpha_at` for α_r; if that is
not zero, it mixes in `soft_targets`. Only the mixture differs between softmax, EQL v2 and Seesaw.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pcb.confusion import ConfusionMatrix
from pcb.distributed import all_sum
from pcb.errors import UserError, require_choice, require_fraction

if TYPE_CHECKING:
    # By step: probabilities and labels of the micro-batches of one iteration.
    Pending = dict[int | None, list[tuple[Tensor, Tensor]]]


class Regulariser(nn.Module):
    """State and schedule of PCB.

    Args:
        num_classes: C foreground classes.
        alpha: α, weight of the regularisation at the last step (Eq. 11). 0: only keep the matrix.
        momentum: γ of the matrix (Eq. 9), or of a bank of them; see `ConfusionMatrix`.
        num_steps: R; α_r = α·r/(R-1) for the 0-based step r.
        start_epoch: First 1-based epoch with regularisation ("after the 16th epoch": 17).
        active: The matrix of the bank that gives the targets; see `ConfusionMatrix`.
        absent: Classes without any training sample. Regularisation waits until all other classes
            have been seen.
        posterior: Targets from M̂ (Eq. 5). False, which losses with a softmax refuse: from M as it
            is, for sigmoid classifiers.
        normalise: Divide updated rows of M by their sum (released code), see `ConfusionMatrix`.
            False: Eq. 9 as printed, and sigmoid classifiers.
        gate: When regularisation starts: 'seen', from `start_epoch` on, once every class has been
            seen (released code); 'epoch', from `start_epoch` on (the paper).
        update: 'each' step updates the matrix (released code), or only the 'last' one (Eq. 9 read
            literally: once per minibatch).

    Raises:
        UserError: An option has none of its values; α outside [0, 1].
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float,
        momentum: float | Sequence[float] = 0.99,
        num_steps: int = 3,
        start_epoch: int = 17,
        active: float | int | None = None,
        absent: Sequence[int] = (),
        posterior: bool = True,
        normalise: bool = True,
        gate: str = "seen",
        update: str = "each",
    ):
        super().__init__()
        require_fraction("alpha", alpha)
        require_choice("update", update, ("each", "last"))
        require_choice("normalise", normalise, (True, False))
        require_choice("gate", gate, ("seen", "epoch"))
        self.alpha, self.num_steps, self.start_epoch = alpha, num_steps, start_epoch
        self.posterior, self.gate, self.update = posterior, gate, update
        self.absent = sorted(set(absent))
        self.confusion = ConfusionMatrix(num_classes, momentum, active, normalise)
        self.epoch = 1
        self.epoch_is_set = False
        self.warned = False  # that it is not
        self.iteration: int | None = None  # of MMEngine's runner, while the epoch is not set
        self.all_seen = False  # cache of a fact in `confusion.seen` that only ever turns true
        self.pending: Pending | None = None  # while updates are deferred

    def set_epoch(self, epoch: int) -> None:
        """Set the 1-based epoch; `PCBEpochHook` calls it at the start of each."""
        self.epoch, self.epoch_is_set = epoch, True

    def _require_epoch(self) -> None:
        """Raise `UserError` where MMEngine's runner trains and nothing sets the epoch.

        PCB would silently stay disabled. A runner is training when its iteration changes between
        two calls. In a training loop of one's own epoch 1 holds until `set_epoch`, with a warning.
        """
        before = self.iteration
        if "mmengine.runner" in sys.modules:  # not imported here: the losses need torch only
            hub = sys.modules["mmengine.logging"].MessageHub.get_current_instance()
            self.iteration = hub.get_info("iter", default=None)
        if self.iteration is None:
            if not self.warned:
                warnings.warn(
                    f"PCB starts in epoch {self.start_epoch}, but the epoch is not set: call "
                    "set_epoch(epoch) of the loss at the start of each epoch, counted from 1",
                    stacklevel=2,
                )
            self.warned = True
            return
        if before is not None and self.iteration != before:
            raise UserError(
                f"PCB should start in epoch {self.start_epoch}, but nothing sets the epoch of "
                "its loss",
                "add dict(type='PCBEpochHook') to custom_hooks in the config",
            )

    def unseen_classes(self) -> list[int]:
        """Return the classes, other than `absent`, without any positive so far."""
        unseen = self.confusion.unseen()
        unseen[self.absent] = False
        return unseen.nonzero().squeeze(1).tolist()

    @property
    def is_active(self) -> bool:
        """Whether regularisation acts now: `start_epoch` is reached and every class has been seen.

        The second condition is the released code's, not the paper's; `gate` removes it. Checking
        it synchronises with a GPU; once true, it is not checked again.
        """
        if self.epoch < self.start_epoch:
            if not self.epoch_is_set:
                self._require_epoch()
            return False
        self.all_seen = self.all_seen or self.gate == "epoch" or not self.unseen_classes()
        return self.all_seen

    def is_last(self, step: int | None) -> bool:
        """Whether the 0-based `step` is the last one; None is."""
        return step is None or step == self.num_steps - 1

    def update_confusion(
        self, probs: Tensor, labels: Tensor, step: int | None = None, extra: Tensor | None = None
    ) -> None:
        """Update the matrix, before the loss of this step.

        A collective: every rank must call it.

        Args:
            probs: (n, C) foreground probabilities of the positives.
            labels: (n,) int64, their classes; C marks a row to ignore.
            step: 0-based step, None: the last.
            extra: A tensor that is summed over all ranks in place, in the same all-reduce.
        """
        learns = self.update == "each" or self.is_last(step)
        if learns and self.pending is None:
            self.confusion.update(probs, labels, extra)
            return
        if learns and self.pending is not None:
            self.pending.setdefault(step, []).append((probs, labels))
        if extra is not None:
            all_sum(extra)

    @contextmanager
    def deferred_updates(self) -> Generator[None]:
        """Collect the updates of one iteration and apply them when the block ends.

        For gradient accumulation, since Eq. 9 counts an iteration as one batch: the micro-batches
        of each step are concatenated, and steps are applied in order. The end is a collective.
        """
        self.pending = pending = {}
        try:
            yield
        finally:
            self.pending = None
        for micro_batches in pending.values():
            probs, labels = (torch.cat(tensors) for tensors in zip(*micro_batches))
            self.confusion.update(probs, labels)

    def alpha_at(self, step: int | None = None) -> float:
        """Return α_r of the 0-based `step` (None: the last), 0 while regularisation is inactive."""
        if not self.alpha or not self.is_active:
            return 0.0
        if step is None or self.is_last(step):
            return self.alpha
        return self.alpha * step / (self.num_steps - 1)

    def soft_targets(self, labels: Tensor) -> Tensor:
        """Return the soft targets (n, C) of positives with labels (n,): columns of M̂, or of M."""
        return self.confusion.columns(labels, self.posterior)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.all_seen = False
        super()._load_from_state_dict(*args, **kwargs)


def require_posterior(options: dict) -> None:
    """Raise `UserError` where the options of a `Regulariser` turn `posterior` off.

    For losses with a softmax: their targets must sum to one, as columns of M̂ do.
    """
    if not options.get("posterior", True):
        raise UserError(
            f"posterior={options['posterior']!r} of a loss with a softmax",
            "leave it out; columns of M itself are targets of PCBEQLv2Loss alone",
        )


class Regularised:
    """Mixin of the PCB losses: the public interface to their regulariser, `self.pcb`."""

    pcb: Regulariser

    @property
    def confusion(self) -> ConfusionMatrix:
        """The confusion matrix; `.confusion.matrix` is M (C, C), row = ground truth."""
        return self.pcb.confusion

    def set_epoch(self, epoch: int) -> None:
        """Set the 1-based epoch; `PCBEpochHook` calls it."""
        self.pcb.set_epoch(epoch)
