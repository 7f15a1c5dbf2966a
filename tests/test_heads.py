"""RoI heads: the step protocol and the iterative paradigm, on their own and inside a small Mask R-CNN."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from tiny import C, D, mask_rcnn, roi_head, rois, sample, sampling

import pcb.mmdet
from pcb.errors import UserError

CLASSIFIERS = ["softmax"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_step_embeds_the_last_prediction():
    head = roi_head()
    x = torch.randn(5, D, 7, 7)
    z, b = head.bbox_head(x)
    where, what = head.mlp_loc(b), head.mlp_cls(z)
    expected = torch.empty_like(x)
    for n in range(5):
        for cell in range(49):
            expected[n, :, cell // 7, cell % 7] = x[n, :, cell // 7, cell % 7] * where[n, cell] + what[n]
    torch.testing.assert_close(head.refine(x, z, b), expected)
    second = head.bbox_head(expected)
    torch.testing.assert_close(head.steps(x)[1], second)


def test_identity_start():
    head = roi_head(identity_start=True)
    x = torch.randn(5, D, 7, 7)
    z, b = head.bbox_head(x)
    assert (head.refine(x, z, b) - x).abs().mean() < 0.05 * x.abs().mean()
    for layer in (head.mlp_cls[-1], head.mlp_loc[-1]):
        assert 0.005 < layer.weight.std() < 0.02
        torch.nn.init.zeros_(layer.weight)
    assert torch.equal(head.refine(x, z, b), x)


def test_the_last_loss_trains_the_first_step():
    head = roi_head()
    steps = head.steps(torch.randn(4, D, 7, 7))
    steps[0][0].retain_grad(), steps[0][1].retain_grad()
    head.classification_loss(steps[2][0], torch.tensor([0, 1, C, 2]), torch.ones(4), 2)["loss_cls"].backward()
    assert steps[0][0].grad.abs().sum() > 0 and steps[0][1].grad.abs().sum() > 0


def losses_by_hand(head, steps, targets):
    """Eq. 19 from stock mmdet pieces: alpha is 0, so every step is plain cross entropy."""
    labels, _, box_targets, box_weights = targets
    ce = [torch.nn.functional.cross_entropy(z, labels) for z, _ in steps]
    fg = labels < C
    boxes = [b.view(len(b), -1, 4)[fg, 0 if b.shape[1] == 4 else labels[fg]] for _, b in steps]
    box = [((b - box_targets[fg]).abs() * box_weights[fg]).sum() / len(labels) for b in boxes]
    return ce, box


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("regression", ["last", "each"])
def test_losses_are_weighted_over_steps(regression, agnostic):
    head = roi_head(alpha=0.0, regression=regression, bbox_head={"reg_class_agnostic": agnostic})
    steps = head.steps(torch.randn(6, D, 7, 7))
    targets = torch.tensor([0, 3, C, C, 1, C]), torch.ones(6), torch.randn(6, 4), torch.ones(6, 4)
    losses = head.step_losses(steps, None, *targets)
    ce, box = losses_by_hand(head, steps, targets)
    w = (0.2, 0.2, 0.6)
    torch.testing.assert_close(losses["loss_cls"], sum(a * b for a, b in zip(w, ce, strict=True)))
    torch.testing.assert_close(losses["loss_bbox"], box[-1] if regression == "last" else sum(a * b for a, b in zip(w, box, strict=True)))
    assert set(losses) == {"loss_cls", "loss_bbox", "acc"}


def test_each_step_updates_the_matrix_in_order():
    head = roi_head(alpha=0.4)
    labels = torch.tensor([0, 3, C, 1])
    steps = head.steps(torch.randn(4, D, 7, 7))
    head.step_losses(steps, None, labels, torch.ones(4), torch.randn(4, 4), torch.ones(4, 4))
    by_hand = pcb.losses.PCBCrossEntropyLoss(C, 0.4)
    for step, (z, _) in enumerate(steps):
        by_hand(z, labels, step=step)
    assert torch.equal(head.bbox_head.loss_cls.confusion.bank, by_hand.confusion.bank)


def test_one_step_is_the_standard_head():
    kwargs = {"num_steps": 1, "step_weights": [1.0], "alpha": 0.0}
    torch.manual_seed(0)
    ours = roi_head(**kwargs)
    torch.manual_seed(0)
    stock = roi_head("StandardRoIHead", alpha=0.0)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in stock.named_parameters()]
    x = (torch.randn(1, D, 24, 24),)
    a, b = ours.bbox_loss(x, [sampling()])["loss_bbox"], stock.bbox_loss(x, [sampling()])["loss_bbox"]
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_predictions_of_every_step_in_one_pass():
    x, boxes = (torch.randn(1, D, 24, 24),), rois()
    head = roi_head()
    steps = head.step_predictions(x, boxes)
    assert len(steps) == 3 and steps[0][0].shape == (len(boxes), C + 1) and steps[0][1].shape == (len(boxes), 4 * C)
    assert torch.equal(head._bbox_forward(x, boxes)["cls_score"], steps[2][0])
    head.test_cls_step, head.test_reg_step = 0, 1
    out = head._bbox_forward(x, boxes)
    assert torch.equal(out["cls_score"], steps[0][0]) and torch.equal(out["bbox_pred"], steps[1][1])


def test_layer_norm_is_on_the_logits_only():
    head = roi_head(layer_norm=True)
    assert isinstance(head.mlp_cls[0], torch.nn.LayerNorm) and head.mlp_cls[0].normalized_shape == (C + 1,)
    assert not any(isinstance(m, torch.nn.LayerNorm) for m in head.mlp_loc)


@pytest.mark.parametrize("wrong", [{"step_weights": [1.0]}, {"regression": "first"}, {"num_steps": 2, "step_weights": [0.5, 0.5]}])
def test_settings_that_do_not_fit_are_refused(wrong):
    with pytest.raises(UserError):
        roi_head(loss_steps=3, **wrong)


@pytest.mark.parametrize("paradigm", ["plain", "iterative"])
@pytest.mark.parametrize("loss", CLASSIFIERS)
def test_mask_rcnn_trains_and_predicts(loss, paradigm):
    model = mask_rcnn(loss, paradigm)
    images, samples = torch.rand(2, 3, 96, 96), [sample() for _ in range(2)]
    losses = model.loss(images, samples)
    total = sum(v if torch.is_tensor(v) else sum(v) for k, v in losses.items() if "loss" in k)
    total.backward()
    assert total.isfinite()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    model.eval()
    with torch.no_grad():
        results = model.predict(images, samples, rescale=False)
    assert len(results) == 2 and set(results[0].pred_instances.keys()) >= {"bboxes", "scores", "labels", "masks"}


def test_the_matrix_travels_in_the_checkpoint(tmp_path):
    one, two = mask_rcnn("softmax", "iterative"), mask_rcnn("softmax", "iterative")
    one.loss(torch.rand(1, 3, 96, 96), [sample()])
    torch.save(one.state_dict(), tmp_path / "model.pth")
    two.load_state_dict(torch.load(tmp_path / "model.pth"))
    bank = one.roi_head.bbox_head.loss_cls.confusion.bank
    assert bank.any() and torch.equal(bank, two.roi_head.bbox_head.loss_cls.confusion.bank)


def test_the_epoch_hook_tells_every_loss():
    model = mask_rcnn("softmax", "iterative")
    runner = SimpleNamespace(model=model, epoch=15, iter=7, message_hub=MessageHub("hook"), logger=MMLogger("hook"))
    hook = pcb.mmdet.PCBEpochHook()
    gate = model.roi_head.bbox_head.loss_cls.pcb
    gate.absent = list(range(C))
    hook.before_train_epoch(runner)
    hook.after_train_iter(runner, 0)
    assert gate.epoch == 16 and hook.KEY not in runner.message_hub.runtime_info
    runner.epoch = 16
    for runner.iter in (8, 9):
        hook.before_train_epoch(runner)
        hook.after_train_iter(runner, 0)
    assert gate.epoch == 17 and runner.message_hub.get_info(hook.KEY) == 8
