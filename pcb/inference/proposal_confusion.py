"""The confusion matrix of a trained detector, measured over the proposals of a split (Eq. 3).

Protocol: the RPN's test-time proposals (not refined, not suppressed by the R-CNN, no ground truth
among them) are matched to the ground-truth box of highest IoU, from 0.5 on; row i is the mean of p̂
(Eq. 1) over the proposals matched to class i. It is a plain mean, not the moving average of
training. PwB and the post-hoc calibrations are computed from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn

from pcb.confusion import pairwise_bias
from pcb.errors import UserError
from pcb.files import intact_files, load_npz, save_hashed, save_npz

IOU_THRESHOLD = 0.5


def foreground(head: nn.Module, logits: Tensor) -> Tensor:
    """p̂ of Eq. 1, by the classifier's own rule or a softmax over the C foreground classes.

    Args:
        head: The box head.
        logits: (n, channels).

    Returns:
        (n, C) float64.
    """
    own_rule = getattr(head.loss_cls, "foreground", None)
    logits = logits.double()
    return own_rule(logits) if own_rule else logits[:, : head.num_classes].softmax(dim=1)


def match(proposals: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Match proposals to the ground-truth box of highest IoU, from `IOU_THRESHOLD` on.

    Args:
        proposals: (n, 4) x1, y1, x2, y2 in pixels.
        boxes: (m, 4) ground truth, likewise.
        labels: (m,) int64 classes of the boxes.

    Returns:
        (k,) rows of the matched proposals and (k,) the class of each.
    """
    if not len(proposals) or not len(boxes):
        return labels[:0], labels[:0]
    best, which = bbox_overlaps(proposals, boxes).max(dim=1)
    rows = (best >= IOU_THRESHOLD).nonzero().squeeze(1)
    return rows, labels[which[rows]]


class ConfusionSums:
    """Sums behind Eq. 3 over some images.

    Attributes:
        sums: (C, C) float64, p̂ summed by class of the ground truth.
        counts: (C,) int64, matched proposals of each class.
        by_image: The sums of single images, where `add` was given the image: for the k classes of
            some images (k,) image ids, (k,) labels and (k, C) float16 sums of p̂.
    """

    def __init__(self, classes: int):
        self.sums, self.counts = np.zeros((classes, classes)), np.zeros(classes, np.int64)
        self.by_image: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, labels: Tensor, probabilities: Tensor, image: int | None = None) -> None:
        """Add matched proposals.

        Args:
            labels: (n,) class of the ground truth of each.
            probabilities: (n, C) p̂ of each.
            image: Their image, to keep its sums too.
        """
        rows, p = labels.cpu().numpy(), probabilities.double().cpu().numpy()
        np.add.at(self.sums, rows, p)
        np.add.at(self.counts, rows, 1)
        if image is not None:
            shown, place = np.unique(rows, return_inverse=True)
            sums = np.zeros((len(shown), len(self.counts)))
            np.add.at(sums, place, p)
            self.by_image.append((np.full(len(shown), image), shown, sums.astype(np.float16)))

    @property
    def image_arrays(self) -> dict[str, np.ndarray]:
        """`by_image` as arrays `image` (K,), `label` (K,) and `image_sums` (K, C)."""
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, len(self.counts))))
        columns = zip(*self.by_image or [empty], strict=True)
        names = ("image", "label", "image_sums")
        return {k: np.concatenate(v) for k, v in zip(names, columns, strict=True)}

    @property
    def matrix(self) -> np.ndarray:
        """M of Eq. 3, (C, C) float64, row = ground truth; a class without proposals has zeros."""
        return self.sums / np.maximum(self.counts, 1)[:, None]


class ConfusionShards:
    """The sums of a split on disk, shard by shard.

    An interrupted pass resumes with the shards that are missing, so it counts every image once.
    """

    def __init__(self, folder: str | Path, fingerprint: str, classes: int):
        """Shards with another `fingerprint` than this are ignored."""
        self.folder, self.fingerprint, self.classes = Path(folder), fingerprint, classes

    def path(self, image_ids: Sequence[int]) -> Path:
        """The file of a shard, named by its first image, without its digest."""
        return self.folder / f"images-{image_ids[0]:012d}.npz"

    def has(self, image_ids: Sequence[int]) -> bool:
        """Whether an intact shard of exactly these images and this fingerprint is on disk."""
        return self._read(image_ids) is not None

    def _read(self, image_ids: Sequence[int]) -> dict[str, np.ndarray] | None:
        for path in intact_files(self.path(image_ids)):
            arrays = load_npz(path, "delete it")
            same_images = arrays["images"].tolist() == list(image_ids)
            if same_images and str(arrays["fingerprint"]) == self.fingerprint:
                return arrays
        return None

    def save(self, image_ids: Sequence[int], sums: ConfusionSums) -> None:
        """Write the shard of these images."""
        rows = sums.counts.nonzero()[0]
        arrays: dict[str, Any] = {
            "rows": rows,
            "sums": sums.sums[rows],
            "counts": sums.counts[rows],
            **sums.image_arrays,
            "fingerprint": self.fingerprint,
            "images": image_ids,
        }
        save_hashed(self.path(image_ids), lambda file: np.savez(file, **arrays))

    def total(self, shards: Sequence[Sequence[int]]) -> ConfusionSums:
        """The sums over all shards, added in their order."""
        total = ConfusionSums(self.classes)
        for image_ids in shards:
            arrays = self._read(image_ids)
            assert arrays, f"{self.path(image_ids)} is counted before"
            total.sums[arrays["rows"]] += arrays["sums"]
            total.counts[arrays["rows"]] += arrays["counts"]
            total.by_image.append((arrays["image"], arrays["label"], arrays["image_sums"]))
        return total


def write_confusion(
    path: Path, total: ConfusionSums, checkpoint: str, dtype: type = np.float32
) -> str:
    """Write a confusion matrix as npz.

    Its arrays are `matrix` (C, C), `seen` (C,) matched proposals, `checkpoint`, and PwB three ways:
    `pwb` of the matrix with its rows divided by their sums, which changes nothing for a softmax;
    `pwb_seen` of that without the classes that have no proposal; `pwb_raw` of the matrix as it is.

    Args:
        path: The file.
        total: Sums over the split.
        checkpoint: SHA-256 of the checkpoint that was measured.
        dtype: dtype of the stored `matrix`.

    Returns:
        SHA-256 of the file.
    """
    matrix, seen = torch.from_numpy(total.matrix), torch.from_numpy(total.counts > 0)
    rows = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    return save_npz(
        path,
        matrix=total.matrix.astype(dtype),
        seen=total.counts,
        checkpoint=checkpoint,
        pwb=pairwise_bias(rows).item(),
        pwb_seen=pairwise_bias(rows[seen][:, seen]).item(),
        pwb_raw=pairwise_bias(matrix).item(),
    )


def write_confusion_images(path: Path, total: ConfusionSums) -> str:
    """Write the sums of single images as npz, for the bootstrap of bias metrics.

    Returns:
        SHA-256 of the file.
    """
    return save_npz(path, **total.image_arrays)


def load_matrix(path: Path, checkpoint: str, command: str, digest: str | None = None) -> Tensor:
    """Read the (C, C) matrix that `write_confusion` wrote of a checkpoint.

    Args:
        path: The file.
        checkpoint: Digest of the weights that it must be of.
        command: The command that writes it, for the error's fix.
        digest: SHA-256 of the file, if that was recorded.

    Raises:
        UserError: The file is missing, broken, or of another checkpoint.
    """
    fix = f"run `{command}` {'again' if path.exists() else 'first'}"
    arrays = load_npz(path, fix, digest)
    if "matrix" not in arrays or str(arrays.get("checkpoint")) != checkpoint:
        raise UserError(f"{path} is of another checkpoint", f"run `{command}` again")
    return torch.from_numpy(arrays["matrix"])
