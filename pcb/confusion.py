"""The confusion matrix at the heart of PCB: M[i, j] is how much a sample of class i is predicted as class j (Eq. 3).

`ConfusionMatrix` keeps it as a moving average during training (Eq. 9), `posterior` turns it into P(class | prediction)
(Eq. 5), `pairwise_bias` measures its asymmetry (PwB). Everywhere: row = ground truth, column = prediction, C foreground
classes, no background. Needs torch only.

Cost of an update: proportional to the classes present in the batch, not to C². Column sums are never stored, they are
taken of the columns that a batch asks for. Over several ranks the update is one dense all-reduce of (C+1, C+1) float32
(6 MB at C = 1230): an exchange of only the rows present would need the ranks to agree on sizes first, a second
collective, and padded to what the sampler may yield (256 rows a rank) it is no smaller. No matrix product is involved,
so TF32 has no say, and every sum has a fixed order, so equal input gives equal bits. On a GPU nothing here waits for a
value: see `needs_static_shapes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pcb.distributed import all_sum, world_size
from pcb.errors import UserError

SYNC_FREE_DEVICES = {"cpu"}  # devices on which a value can be looked at for nothing
NO_COLUMN = (
    1e-20  # weight of the one-hot target in a column: decides only where the column is empty
)


def pairwise_bias(matrix: Tensor) -> Tensor:
    """PwB = ||M - Mᵀ||_F of a (C, C) matrix: 0 when every pair of classes is confused equally in both directions (§4.1)."""
    return torch.linalg.matrix_norm(matrix - matrix.mT)


def posterior(matrix: Tensor) -> Tensor:
    """Eq. 5: columns of a (C, C) matrix divided by their sums; [i, j] is P(class i | predicted j). Empty columns stay zero."""
    return matrix / matrix.sum(dim=-2, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)


def sum_by_index(rows: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum the (n, C) `rows` that share an index: (size, C). Always in the order of the rows, on CPU and on CUDA."""
    out = rows.new_zeros(size, rows.shape[1])
    # The other way round, index_add_ on CUDA and index_put_ on CPU threads, the order would depend on timing.
    return (
        out.index_put_((index,), rows, accumulate=True)
        if rows.is_cuda
        else out.index_add_(0, index, rows)
    )


def needs_static_shapes(labels: Tensor) -> bool:
    """Whether no size may depend on the labels. On a GPU, to learn how many classes are present is to wait for all work before.

    Then, here and in pcb/losses, all RoIs are treated as if they were positives, and label C says which are not.
    """
    return labels.device.type not in SYNC_FREE_DEVICES


def distinct(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k classes among labels (n,), in order; the index of each label among them (n,); how many have it (k,).

    With `needs_static_shapes` k = n: places left over, and that of the label C ("none"), hold class C, with a count of 0.
    """
    if not needs_static_shapes(labels):
        return labels.unique(return_inverse=True, return_counts=True)
    ordered, order = labels.sort(stable=True)
    index = torch.zeros_like(ordered)
    index[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    classes = torch.full_like(ordered, num_classes).scatter_(0, index, ordered)
    counts = torch.zeros_like(ordered).scatter_add_(
        0, index, (ordered < num_classes).to(ordered.dtype)
    )
    return classes, torch.empty_like(index).scatter_(0, order, index), counts


def class_sums(
    rows: Tensor, labels: Tensor, num_classes: int, extra: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum (n, D) `rows` by label (n,) over all ranks: classes (k,), their sums (k, D), their counts (k,).

    A class may come more than once, with the same sums and count each time; where nobody has it the count is 0.
    A collective where there are several ranks: all of them must call it equally often, also those with n = 0. It sums `extra` too.
    """
    classes, index, counts = distinct(labels, num_classes)
    sums = sum_by_index(rows, index, len(classes))
    if world_size() > 1:
        every = sums.new_zeros(
            num_classes + 1, sums.shape[1] + 1
        )  # the last row takes what belongs to no class
        every[classes] = torch.cat([sums, counts[:, None].to(sums.dtype)], dim=1)
        all_sum(every, *([] if extra is None else [extra]))
        return (
            torch.arange(num_classes, device=labels.device),
            every[:-1, :-1],
            every[:-1, -1].long(),
        )
    if needs_static_shapes(labels) and len(labels):
        first = torch.where(
            counts > 0, torch.arange(len(classes), device=labels.device), 0
        )  # in place of what is left over
        classes, sums, counts = (
            classes[first].clamp(max=num_classes - 1),
            sums.index_select(0, first),
            counts[first],
        )
    return classes, sums, counts


class ConfusionMatrix(nn.Module):
    """Moving average of the confusion matrix, for one momentum or for a bank of them side by side.

    Buffers: `bank` (G, C, C) float32, zero at first; `seen` (C,) int64, positives met so far; `momenta` (G,) float64.
    `active` chooses the matrix that `.matrix` and `.columns` use: a float names a momentum, an int an index in the bank;
    it may stay None when there is only one.

    With `normalise`, updated rows are divided by their sum (released code, softmax and Seesaw). From the zero start this makes the
    first sight of a class replace its row. Without it (EQL v2) rows grow as 1 - γ^k.

    A checkpoint with a larger bank loads into a smaller one: momenta are matched by value, so that a branch takes its
    own matrix from a shared trunk. One that lacks a momentum raises `UserError`.
    """

    def __init__(
        self,
        num_classes: int,
        momentum: float | Sequence[float] = 0.99,
        active: float | int | None = None,
        normalise: bool = True,
    ):
        super().__init__()
        momenta = [
            float(m) for m in ([momentum] if isinstance(momentum, (int, float)) else momentum)
        ]
        if not momenta or not all(0 <= m < 1 for m in momenta):
            raise UserError(
                f"momentum {momentum!r} of the confusion matrix",
                "give numbers with 0 <= momentum < 1",
            )
        self.num_classes = num_classes
        self.normalise = normalise
        self.active = self._index_of(active, momenta)
        self.register_buffer("bank", torch.zeros(len(momenta), num_classes, num_classes))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("momenta", torch.tensor(momenta, dtype=torch.float64))

    @staticmethod
    def _index_of(active: float | int | None, momenta: list[float]) -> int:
        if active is None and len(momenta) == 1:
            return 0
        if isinstance(active, int) and 0 <= active < len(momenta):
            return active
        if isinstance(active, float):
            for index, momentum in enumerate(momenta):
                if abs(momentum - active) < 1e-9:
                    return index
        raise UserError(
            f"active={active!r} names none of the momenta {momenta}",
            "give one of them, or its index in the list",
        )

    @property
    def matrix(self) -> Tensor:
        """The active (C, C) matrix, as after the last update."""
        return self.bank[self.active]

    @torch.no_grad()
    def update(self, probs: Tensor, labels: Tensor, extra: Tensor | None = None) -> None:
        """Eq. 9, once: rows of the classes present move towards their mean prediction over the positives of all ranks.

        Args:
            probs: (n, C) foreground probabilities of the positives (Eq. 1, or sigmoids); n may be 0.
            labels: (n,) their classes, 0 .. C-1; C marks a row to leave out.
            extra: another tensor, to be summed over all ranks by the same collective.
        A collective where there are several ranks: all of them must call it equally often.
        """
        classes, sums, counts = class_sums(
            probs.detach().to(self.bank.dtype), labels, self.num_classes, extra
        )
        present = counts > 0
        mean = sums.div_(counts.clamp(min=1)[:, None])
        weight = (1 - self.momenta).to(self.bank.dtype)[:, None, None] * present[:, None]
        rows = self.bank.index_select(1, classes).lerp_(mean, weight)
        if self.normalise:
            rows /= torch.where(present[:, None], rows.sum(dim=-1, keepdim=True), 1)
        self.bank.index_copy_(1, classes, rows)
        self.seen.index_copy_(0, classes, self.seen[classes] + counts)

    @torch.no_grad()
    def columns(self, labels: Tensor, posterior: bool = True) -> Tensor:
        """Column y of the active matrix for each label y: (n,) -> (n, C); with `posterior`, of M̂ (Eq. 5).

        Posterior columns sum to one. Where a column is empty, because nothing is ever predicted as that class, it is one-hot.
        For the label C ("none") it is some column.
        """
        fixed = needs_static_shapes(labels)
        classes, index = (
            (labels.clamp(max=self.num_classes - 1), None)
            if fixed
            else labels.unique(return_inverse=True)
        )
        columns = self.matrix.t().index_select(0, classes)
        if posterior:
            columns.scatter_add_(
                1, classes[:, None], columns.new_full((len(classes), 1), NO_COLUMN)
            )
            columns /= columns.sum(dim=1, keepdim=True)
        return columns if fixed else columns.index_select(0, index)

    def unseen(self) -> Tensor:
        """(C,) bool: classes without any positive so far."""
        return self.seen == 0

    def _load_from_state_dict(self, state_dict, prefix, *args):
        bank, theirs = state_dict.get(prefix + "bank"), state_dict.get(prefix + "momenta")
        if (
            bank is not None
            and theirs is not None
            and not torch.equal(theirs.cpu(), self.momenta.cpu())
        ):
            close = (theirs.cpu()[None] - self.momenta.cpu()[:, None]).abs() < 1e-9
            if not close.any(dim=1).all():
                raise UserError(
                    f"the checkpoint keeps confusion matrices for momenta {theirs.tolist()}, not for {self.momenta.tolist()}",
                    "start from a checkpoint trained with these momenta, or change the momenta of this run",
                )
            state_dict[prefix + "bank"] = bank[close.int().argmax(dim=1).to(bank.device)]
            state_dict[prefix + "momenta"] = self.momenta.clone()
        super()._load_from_state_dict(state_dict, prefix, *args)
