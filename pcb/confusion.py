"""The confusion matrix of PCB: M[i, j] is how much class i is predicted as class j (Eq. 3).

`ConfusionMatrix` keeps it as a moving average during training (Eq. 9), `posterior` turns it into
P(class | prediction) (Eq. 5), `pairwise_bias` measures its asymmetry (PwB). Everywhere: row =
ground truth, column = prediction, C foreground classes, no background. Needs torch only.

An update costs time in proportion to the classes present in the batch, not to C². Several ranks
share one dense all-reduce of (C+1, C+1) float32 (6 MB at C = 1230). Every sum has a fixed order, so
equal input gives identical results. On a GPU nothing here synchronises: see `needs_static_shapes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pcb.distributed import all_sum, world_size
from pcb.errors import UserError

SYNC_FREE_DEVICES = {"cpu"}  # devices on which reading a value does not block
# Weight of a one-hot target that is added to each column; it matters only where that is empty.
ONE_HOT_WEIGHT = 1e-20


def pairwise_bias(matrix: Tensor) -> Tensor:
    """Compute PwB = ||M - Mᵀ||_F of a (C, C) matrix (§4.1).

    It is 0 when each pair of classes is confused equally in both directions.
    """
    return torch.linalg.matrix_norm(matrix - matrix.mT)


def posterior(matrix: Tensor) -> Tensor:
    """Divide the columns of a (C, C) matrix by their sums (Eq. 5).

    Returns:
        (C, C) tensor, [i, j] is P(class i | predicted j). Empty columns stay zero.
    """
    return matrix / matrix.sum(dim=-2, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)


def needs_static_shapes(labels: Tensor) -> bool:
    """Whether no tensor's size may depend on the values of `labels`.

    On a GPU, counting the classes present would force a host-device synchronisation. There, this
    module and pcb/losses compute on all RoIs, and label C marks those that are not positive.

    Args:
        labels: (n,) int64; only its device is read.
    """
    return labels.device.type not in SYNC_FREE_DEVICES


def sum_by_index(rows: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum the (n, D) `rows` that share an index (n,) into (size, D), in the order of the rows."""
    out = rows.new_zeros(size, rows.shape[1])
    # The order is deterministic only with this choice: index_add_ on CUDA and index_put_ on CPU
    # threads sum in an order that depends on timing.
    if rows.is_cuda:
        return out.index_put_((index,), rows, accumulate=True)
    return out.index_add_(0, index, rows)


def distinct(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the distinct classes among labels.

    Args:
        labels: (n,) int64, 0 .. C-1, or C for "none" where shapes are static.
        num_classes: C.

    Returns:
        The k classes in ascending order (k,), the index of each label among them (n,), and how many
        labels have each (k,). With static shapes k = n; unused entries, and that of the label C,
        hold class C with a count of 0.
    """
    if not needs_static_shapes(labels):
        return torch.unique(labels, return_inverse=True, return_counts=True)
    ordered, order = labels.sort(stable=True)
    index = torch.zeros_like(ordered)
    index[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    classes = torch.full_like(ordered, num_classes).scatter_(0, index, ordered)
    is_class = (ordered < num_classes).to(ordered.dtype)
    counts = torch.zeros_like(ordered).scatter_add_(0, index, is_class)
    return classes, torch.empty_like(index).scatter_(0, order, index), counts


def class_sums(
    rows: Tensor, labels: Tensor, num_classes: int, extra: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum rows by their label, over all ranks.

    A collective: every rank must call it equally often, also with n = 0.

    Args:
        rows: (n, D) float.
        labels: (n,) int64 of 0 .. C-1; C marks a row to ignore.
        num_classes: C.
        extra: A tensor that is summed over all ranks in place, in the same all-reduce.

    Returns:
        Classes (k,), their sums (k, D) and their counts (k,). A class may occur more than once,
        with the same sum and count each time; both are 0 where no rank has the class, or where a
        value is not finite, which would stay in a moving average forever.
    """
    classes, index, counts = distinct(labels, num_classes)
    sums = sum_by_index(rows, index, len(classes))
    if world_size() > 1:
        # The extra row C collects the ignored rows.
        dense = sums.new_zeros(num_classes + 1, sums.shape[1] + 1)
        dense[classes] = torch.cat([sums, counts[:, None].to(sums.dtype)], dim=1)
        all_sum(dense, *([] if extra is None else [extra]))
        every_class = torch.arange(num_classes, device=labels.device)
        return every_class, *finite_only(dense[:-1, :-1], dense[:-1, -1].long())
    if needs_static_shapes(labels) and len(labels):
        # Let unused entries repeat the first class, so that writing them changes nothing.
        entries = torch.arange(len(classes), device=labels.device)
        used = torch.where(counts > 0, entries, 0)
        classes = classes[used].clamp(max=num_classes - 1)
        counts = counts[used]
        # If every row is ignored, the first entry holds their sum instead of a class's.
        sums = torch.where(counts[:, None] > 0, sums.index_select(0, used), 0)
    return classes, *finite_only(sums, counts)


def finite_only(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Set rows of `sums` (k, D) with a value that is not finite, and their `counts` (k,), to 0."""
    finite = sums.sum(dim=1).isfinite()
    if not needs_static_shapes(counts) and finite.all():
        return sums, counts  # the usual case, without a copy
    return torch.where(finite[:, None], sums, 0), torch.where(finite, counts, 0)


class KeepsPrecision(nn.Module):
    """Module whose state a conversion of the model never makes coarser, nor that of its children.

    A moving average stands still in bfloat16, a count in float16, and `ONE_HOT_WEIGHT` is 0 there.
    So `.half()` and `.to(torch.bfloat16)` change no dtype here, nor does `.float()` that of float64
    buffers. `.double()` and moves to another device work as usual.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if torch.promote_types(tensor.dtype, converted.dtype) == converted.dtype:
                return converted
            return tensor.to(converted.device)

        return super()._apply(convert, recurse)


class ConfusionMatrix(KeepsPrecision):
    """Moving average of the confusion matrix, for one momentum or for a bank of them.

    A checkpoint with a larger bank loads into a smaller one: momenta are matched by value, so that
    a branch takes its own matrix from a shared trunk.

    Args:
        num_classes: C.
        momentum: γ of Eq. 9, or one for each matrix of the bank.
        active: Which matrix `matrix` and `columns` use: a float is a momentum, an int an index in
            the bank. May be None when there is only one.
        normalise: Divide updated rows by their sum (released code, softmax and Seesaw). From the
            zero start, the first sample of a class then replaces its row. Without it (Eq. 9 as
            printed; EQL v2), rows grow as 1 - γ^k.

    Attributes:
        bank: Buffer (G, C, C) float32, zero at first.
        seen: Buffer (C,) int64, positives seen so far.
        momenta: Buffer (G,) float64.

    Raises:
        UserError: A momentum outside [0, 1), or `active` names none of them.
    """

    bank: Tensor
    seen: Tensor
    momenta: Tensor

    def __init__(
        self,
        num_classes: int,
        momentum: float | Sequence[float] = 0.99,
        active: float | int | None = None,
        normalise: bool = True,
    ):
        super().__init__()
        values = [momentum] if isinstance(momentum, (int, float)) else momentum
        momenta = [float(m) for m in values]
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
        """The active matrix (C, C), a view of the bank."""
        return self.bank[self.active]

    @torch.no_grad()
    def update(self, probs: Tensor, labels: Tensor, extra: Tensor | None = None) -> None:
        """Move the rows of the classes present towards their mean prediction, once (Eq. 9).

        A collective: every rank must call it equally often, also with n = 0.

        Args:
            probs: (n, C) foreground probabilities of the positives (Eq. 1, or sigmoids).
            labels: (n,) int64 of 0 .. C-1; C marks a row to ignore.
            extra: A tensor that is summed over all ranks in place, in the same all-reduce.
        """
        probs = probs.detach().to(self.bank.dtype)
        classes, sums, counts = class_sums(probs, labels, self.num_classes, extra)
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
        """Return column y of the active matrix for each label y.

        Args:
            labels: (n,) int64 of 0 .. C-1; the label C, for "none", gets an arbitrary one.
            posterior: Take the columns of M̂ (Eq. 5) instead of M. They sum to one; an empty column,
                of a class that is never predicted, becomes one-hot.

        Returns:
            (n, C) tensor.
        """
        if needs_static_shapes(labels):
            classes, index = labels.clamp(max=self.num_classes - 1), None
        else:
            classes, index = torch.unique(labels, return_inverse=True)
        columns = self.matrix.t().index_select(0, classes)
        if posterior:
            one_hot = columns.new_full((len(classes), 1), ONE_HOT_WEIGHT)
            columns.scatter_add_(1, classes[:, None], one_hot)
            columns /= columns.sum(dim=1, keepdim=True)
        return columns if index is None else columns.index_select(0, index)

    def unseen(self) -> Tensor:
        """Return (C,) bool: classes without any positive so far."""
        return self.seen == 0

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        bank, saved = state_dict.get(prefix + "bank"), state_dict.get(prefix + "momenta")
        if bank is not None and saved is not None:
            saved, wanted = saved.cpu(), self.momenta.cpu()
            if not torch.equal(saved, wanted):
                close = (saved[None] - wanted[:, None]).abs() < 1e-9
                if not close.any(dim=1).all():
                    raise UserError(
                        f"the checkpoint keeps confusion matrices for momenta {saved.tolist()}, "
                        f"not for {wanted.tolist()}",
                        "start from a checkpoint trained with these momenta, or change the momenta "
                        "of this run",
                    )
                state_dict[prefix + "bank"] = bank[close.int().argmax(dim=1).to(bank.device)]
                state_dict[prefix + "momenta"] = self.momenta.clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
