"""The regulariser that the three PCB classifiers share: the matrix, when it may act, and how strongly at which step.

A loss calls `update_confusion` with its foreground probabilities, asks `alpha_at` for α_r, and if that is not zero, mixes in the soft
targets of `soft_targets`. What "mix" means is all that differs between softmax, EQL v2 and Seesaw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pcb.confusion import ConfusionMatrix
from pcb.distributed import all_sum
from pcb.errors import UserError


class Regulariser(nn.Module):
    """State and schedule of PCB.

    Args:
        num_classes: C foreground classes.
        alpha: α, weight of the regularisation at the last step (Eq. 11). 0: never regularise, only keep the matrix.
        momentum, active: γ of the matrix (Eq. 9), or a bank of them and the one in use; see `ConfusionMatrix`.
        num_steps: R; α_r = α·r/(R-1) for the 0-based step r.
        start_epoch: first 1-based epoch with regularisation ("after the 16th epoch": 17).
        absent: classes without any training sample. Regularisation waits until all other classes have been seen.
        posterior: targets from M̂ (Eq. 5) with rows of M normalised; False (sigmoid classifiers): from M as it is.
        update: 'each' step updates the matrix (released code), or only the 'last' one (Eq. 9 read literally:
            once a minibatch).
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
        update: str = "each",
    ):
        super().__init__()
        if update not in ("each", "last"):
            raise ValueError(f"update={update!r}: 'each' or 'last'")
        self.alpha, self.num_steps, self.start_epoch, self.posterior, self.update = (
            alpha,
            num_steps,
            start_epoch,
            posterior,
            update,
        )
        self.absent = sorted(set(absent))
        self.confusion = ConfusionMatrix(num_classes, momentum, active, normalise=posterior)
        self.epoch = 1
        self.epoch_is_set = False  # whether anybody ever called `set_epoch`
        self.iteration: int | None = None  # of mmengine's runner, as long as nobody did
        self.all_seen = False  # cache of a fact in `seen`, which only ever turns true
        self.pending: dict[int | None, list[tuple[Tensor, Tensor]]] | None = (
            None  # by step, while updates are deferred
        )

    def set_epoch(self, epoch: int) -> None:
        """Tell the 1-based epoch; `PCBEpochHook` does so at the start of each."""
        self.epoch, self.epoch_is_set = epoch, True

    def require_epoch(self) -> None:
        """Raises `UserError` where mmengine's runner trains and nobody tells the epoch: PCB would stay shut, and nothing would say so.

        It is the runner where its iterations pass from one call to the next. By hand, epoch 1 holds until `set_epoch`.
        """
        from mmengine.logging import MessageHub

        before, self.iteration = (
            self.iteration,
            MessageHub.get_current_instance().get_info("iter", default=None),
        )
        if before is not None and self.iteration != before:
            raise UserError(
                f"PCB is to start in epoch {self.start_epoch}, but nothing tells its loss the epoch",
                "add dict(type='PCBEpochHook') to custom_hooks in the config",
            )

    def unseen_classes(self) -> list[int]:
        """Classes, other than `absent`, that have had no positive yet."""
        unseen = self.confusion.unseen()
        unseen[self.absent] = False
        return unseen.nonzero().squeeze(1).tolist()

    @property
    def is_active(self) -> bool:
        """Whether regularisation may act now: the epoch has come, and every class has been seen (released code, not in the paper).

        The one question here for which a GPU is waited for; once the answer is yes it is not asked again.
        """
        if self.epoch < self.start_epoch:
            if not self.epoch_is_set:
                self.require_epoch()
            return False
        self.all_seen = self.all_seen or not self.unseen_classes()
        return self.all_seen

    def is_last(self, step: int | None) -> bool:
        return step is None or step == self.num_steps - 1

    def update_confusion(
        self, probs: Tensor, labels: Tensor, step: int | None = None, extra: Tensor | None = None
    ) -> None:
        """Update the matrix with (n, C) probabilities of positives, before the loss of this step; sum `extra` over the ranks.

        A collective: all ranks must call it.
        """
        learns = self.update == "each" or self.is_last(step)
        if learns and self.pending is None:
            self.confusion.update(probs, labels, extra)
            return
        if learns:
            self.pending.setdefault(step, []).append((probs, labels))
        if extra is not None:
            all_sum(extra)

    @contextmanager
    def deferred_updates(self) -> Iterator[None]:
        """Collect the updates of one iteration and apply them when the block ends.

        For gradient accumulation: Eq. 9 counts an iteration as one batch. The micro-batches of each step are concatenated, and
        the steps are applied in order. The end of the block is a collective.
        """
        self.pending = pending = {}
        try:
            yield
        finally:
            self.pending = None
        for micro_batches in pending.values():
            self.confusion.update(*map(torch.cat, zip(*micro_batches, strict=True)))

    def alpha_at(self, step: int | None = None) -> float:
        """α_r of the 0-based `step` (None: the last), 0 while regularisation is shut."""
        if not self.alpha or not self.is_active:
            return 0.0
        return self.alpha if self.is_last(step) else self.alpha * step / (self.num_steps - 1)

    def soft_targets(self, labels: Tensor) -> Tensor:
        """Soft targets of positives: (n,) -> (n, C), column y of M̂, or of M."""
        return self.confusion.columns(labels, self.posterior)

    def _load_from_state_dict(self, *args):
        self.all_seen = False
        super()._load_from_state_dict(*args)


class Regularised:
    """Mixin of the PCB losses: their regulariser is `self.pcb`, and these are its public faces."""

    pcb: Regulariser

    @property
    def confusion(self) -> ConfusionMatrix:
        return self.pcb.confusion

    def set_epoch(self, epoch: int) -> None:
        self.pcb.set_epoch(epoch)
