"""The example for torchvision on the plug-in page: it trains, and background comes last."""

from __future__ import annotations

import importlib.util
import re
import sys

import fake_torchvision
import pytest
import torch
from fake_torchvision import FEATURE

from pcb.files import ROOT

CLASSES, EPOCHS, START = 3, 4, 4
OURS = f"CLASSES, EPOCHS, START, STEP_WEIGHTS = {CLASSES}, {EPOCHS}, {START}, "


def example() -> str:
    """The example on the page, with fewer classes and epochs, at a lower learning rate."""
    page = (ROOT / "docs/plugin.md").read_text(encoding="utf-8")
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "roi_heads" in c]
    assert len(code.strip().splitlines()) <= 50
    code, changed = re.subn(r"CLASSES, EPOCHS, START, STEP_WEIGHTS = \d+, \d+, \d+, ", OURS, code)
    assert changed == 1
    return code.replace("lr=0.02", "lr=0.002")


def batches(generator, n=16):
    """RoIs of two images; those of label k have larger values in channel k. 0 is background."""
    images, objects = [], []
    for _ in range(2):
        labels = torch.randint(CLASSES + 1, (n,), generator=generator)
        features = 0.02 * torch.randn(n, *FEATURE, generator=generator)
        features[torch.arange(n), labels] += 1
        images.append(features)
        objects.append({"labels": labels, "boxes": torch.zeros(n, 4)})
    return images, objects


@pytest.fixture
def trained(monkeypatch):
    """The names that the example defines, after its training on made-up RoIs."""
    for name, module in fake_torchvision.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    names = {"loader": [batches(generator) for _ in range(24)]}
    exec(example(), names)
    return names


def test_it_trains_with_pcb_and_background_comes_last(trained):
    criterion, model = trained["criterion"], trained["model"]
    assert criterion.pcb.is_active and criterion.pcb.epoch == EPOCHS
    matrix = criterion.confusion.matrix
    torch.testing.assert_close(matrix.sum(1), torch.ones(CLASSES))
    # Had a label or a column been off by one, a class would not be found on the diagonal.
    assert (matrix.argmax(1) == torch.arange(CLASSES)).all()
    images, objects = batches(torch.Generator().manual_seed(9))
    scores = model.eval()(images)
    labels = torch.cat([o["labels"] for o in objects])
    assert (scores.argmax(1) == labels).float().mean() > 0.9
    assert any(key.endswith("criterion.pcb.confusion.bank") for key in model.state_dict())


def test_before_pcb_starts_its_loss_is_torchvisions_in_each_step(trained):
    criterion, stock = trained["criterion"], fake_torchvision.fastrcnn_loss
    criterion.set_epoch(1)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 16, CLASSES + 1, generator=generator)
    deltas = torch.randn(16, 4 * (CLASSES + 1), generator=generator)
    labels = [torch.randint(CLASSES + 1, (8,), generator=generator) for _ in range(2)]
    boxes = [torch.randn(8, 4, generator=generator) for _ in range(2)]
    ours = trained["pcb_fastrcnn_loss"](logits, deltas, labels, boxes)
    theirs = [stock(step, deltas, labels, boxes) for step in logits]
    expected = sum(w * c for w, (c, _) in zip((0.2, 0.2, 0.6), theirs, strict=True))
    torch.testing.assert_close(ours[0], expected)
    torch.testing.assert_close(ours[1], theirs[-1][1])


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)
def test_it_runs_with_torchvision_itself():
    from torchvision.models.detection import roi_heads

    stock = roi_heads.fastrcnn_loss
    small = "(weights_backbone=None, min_size=64, max_size=64, num_classes="
    boxes = torch.tensor([[5.0, 5, 30, 30], [20, 20, 60, 60]])
    objects = [{"boxes": boxes, "labels": torch.tensor([1, 3])}]
    names = {"loader": [([torch.rand(3, 64, 64)], objects)]}
    try:
        exec(example().replace("(num_classes=", small), names)
    finally:
        roi_heads.fastrcnn_loss = stock
    assert names["criterion"].pcb.epoch == EPOCHS and names["criterion"].confusion.matrix.any()
    assert names["model"].eval()([torch.rand(3, 64, 64)])[0]["scores"].isfinite().all()
