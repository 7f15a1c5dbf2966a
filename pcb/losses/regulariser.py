"""The regulariser that the three PCB classifiers share: the matrix, when it may act, and how strongly at which step.

A loss calls `observe` with its foreground probabilities, asks `strength` for α_r, and if that is not zero, mixes in the soft
targets of `targets`. What "mix" means is all that differs between softmax, EQL v2 and Seesaw.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self.told = False  # whether anybody ever called `set_epoch`
        self.iteration: int | None = None  # of mmengine's runner, as long as nobody did
        self.all_seen = False  # cache of a fact in `seen`, which only ever turns true
        self.held: dict[int | None, list[tuple[Tensor, Tensor]]] | None = (
            None  # by step: what was observed since `hold`
        )

    def set_epoch(self, epoch: int) -> None:
        """Tell the 1-based epoch; `PCBEpochHook` does so at the start of each."""
        self.epoch, self.told = epoch, True

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

    def waiting_for(self) -> list[int]:
        """Classes, other than `absent`, that have had no positive yet."""
        unseen = self.confusion.unseen()
        unseen[self.absent] = False
        return unseen.nonzero().squeeze(1).tolist()

    @property
    def open(self) -> bool:
        """Whether regularisation may act now: the epoch has come, and every class has been seen (released code, not in the paper).

        The one question here for which a GPU is waited for; once the answer is yes it is not asked again.
        """
        if self.epoch < self.start_epoch:
            if not self.told:
                self.require_epoch()
            return False
        self.all_seen = self.all_seen or not self.waiting_for()
        return self.all_seen

    def is_last(self, step: int | None) -> bool:
        return step is None or step == self.num_steps - 1

    def observe(
        self, probs: Tensor, labels: Tensor, step: int | None = None, also: Tensor | None = None
    ) -> None:
        """Update the matrix with (n, C) probabilities of positives, before the loss of this step; sum `also` over the ranks.

        A collective: all ranks must call it.
        """
        learns = self.update == "each" or self.is_last(step)
        if learns and self.held is None:
            self.confusion.update(probs, labels, also)
            return
        if learns:
            self.held.setdefault(step, []).append((probs, labels))
        if also is not None:
            all_sum(also)

    def hold(self) -> None:
        """From here on only remember what is observed: a batch comes in parts, but is one batch to Eq. 9."""
        self.held = {}

    def release(self) -> None:
        """Learn what was held, each step's parts together, in the order of the steps. A collective: all ranks must call it."""
        held, self.held = self.held, None
        for parts in held.values():
            self.confusion.update(*map(torch.cat, zip(*parts, strict=True)))

    def strength(self, step: int | None = None) -> float:
        """α_r of the 0-based `step` (None: the last), 0 while regularisation is shut."""
        if not self.alpha or not self.open:
            return 0.0
        return self.alpha if self.is_last(step) else self.alpha * step / (self.num_steps - 1)

    def targets(self, labels: Tensor) -> Tensor:
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
