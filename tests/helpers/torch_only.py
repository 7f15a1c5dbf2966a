"""The three PCB losses in a plain training loop; a program that needs torch and numpy only.

    python tests/helpers/torch_only.py     # with any Python that has torch and this package

Ten classes, of which class k has features around corner k, and half of class 1 looks like class 0.
Prints the losses; fails if one does not learn, or if PCB does not act.
"""

from __future__ import annotations

import warnings

import torch

from pcb.confusion import ConfusionMatrix, pairwise_bias
from pcb.iterative import IterativePrediction
from pcb.losses import PCBCrossEntropyLoss, PCBEQLv2Loss, PCBSeesawLoss
from pcb.losses.eqlv2 import PRIOR_BIAS

CLASSES, EPOCHS, ITERATIONS, ROIS = 10, 3, 30, 64
LOSSES = (PCBCrossEntropyLoss, PCBEQLv2Loss, PCBSeesawLoss)


class BoxHead(torch.nn.Module):
    """From features (N, 16, 2, 2) to logits and box deltas."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc_cls = torch.nn.Linear(64, channels)
        self.fc_reg = torch.nn.Linear(64, 4 * CLASSES)

    def forward(self, features: torch.Tensor):
        x = features.flatten(1)
        return self.fc_cls(x), self.fc_reg(x)


def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """RoI features (ROIS, 16, 2, 2) and labels; label CLASSES is background."""
    labels = torch.randint(CLASSES + 1, (ROIS,), generator=generator)
    shown = torch.where((labels == 1) & (torch.rand(ROIS, generator=generator) < 0.5), 0, labels)
    features = 2 * torch.nn.functional.one_hot(shown, 16).float()
    noise = torch.randn(ROIS, 16, 2, 2, generator=generator)
    return features[:, :, None, None] + 0.3 * noise, labels


def train(kind: type) -> tuple[float, float]:
    """Train with one loss; return the mean loss of the first and of the last epoch before PCB."""
    torch.manual_seed(0)
    criterion = kind(CLASSES, num_steps=3, start_epoch=EPOCHS)
    channels = criterion.get_cls_channels(CLASSES)
    head = BoxHead(channels)
    if kind is PCBEQLv2Loss:
        torch.nn.init.constant_(head.fc_cls.bias, PRIOR_BIAS)
    iterative = IterativePrediction(channels, 4 * CLASSES, 16, 4, hidden=32, identity_start=True)
    parameters = [*head.parameters(), *iterative.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    generator, means = torch.Generator().manual_seed(1), []
    for epoch in range(1, EPOCHS + 1):
        criterion.set_epoch(epoch)
        total = 0.0
        for _ in range(ITERATIONS):
            features, labels = batch(generator)
            loss = torch.zeros(())
            for step, (logits, _) in enumerate(iterative(features, head)):
                value = criterion(logits, labels, step=step)
                parts = value.values() if isinstance(value, dict) else [value]
                loss = loss + (0.2, 0.2, 0.6)[step] * sum(parts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        means.append(total / ITERATIONS)
    assert criterion.pcb.is_active and criterion.pcb.alpha_at() == criterion.pcb.alpha > 0
    matrix = criterion.confusion.matrix
    assert isinstance(criterion.confusion, ConfusionMatrix) and matrix.shape == (CLASSES, CLASSES)
    assert matrix[1, 0] > matrix[1, 2:].max() and pairwise_bias(matrix) > 0
    scores = criterion.get_activation(head(batch(generator)[0])[0])
    assert scores.shape == (ROIS, CLASSES + 1) and scores.isfinite().all()
    again = kind(CLASSES, num_steps=3, start_epoch=EPOCHS)
    again.load_state_dict(criterion.state_dict())
    assert torch.equal(again.confusion.matrix, matrix)
    return means[0], means[-2]


def main() -> None:
    """Train with each loss."""
    for kind in LOSSES:
        first, last = train(kind)
        assert last < 0.9 * first, (kind, first, last)
        print(f"{kind.__name__}: loss {first:.3f}, then {last:.3f}; PCB acts")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        criterion = PCBCrossEntropyLoss(CLASSES)
        for _ in range(2):
            criterion(torch.zeros(2, CLASSES + 1), torch.zeros(2, dtype=torch.int64))
    assert [("set_epoch" in str(w.message)) for w in caught] == [True], "a single warning"


if __name__ == "__main__":
    main()
