"""RoI heads: the step protocol and the paradigms, alone and inside a small Mask R-CNN."""

from __future__ import annotations

import inspect
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from cuda_autocast import CudaAutocast
from mmdet.registry import MODELS
from mmengine.logging import MessageHub, MMLogger
from tiny import EXPERIMENTS, C, D, mask_rcnn, roi_head, rois, sample, sampling

import pcb.mmdet
from pcb.errors import UserError
from pcb.heads import IterativeRoIHead, LOCERoIHead
from pcb.heads.loce import FeatureMemory, jitter_boxes, mean_scores
from pcb.iterative import IterativePrediction
from pcb.training.build import load_weights
from pcb.training.memory_format import make_outputs_readable


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_step_feeds_the_last_prediction_back():
    head = roi_head()
    x = torch.randn(5, D, 7, 7)
    z, b = head.bbox_head(x)
    factors, summands = head.iterative.mlp_loc(b), head.iterative.mlp_cls(z)
    expected = torch.empty_like(x)
    for n in range(5):
        for cell in range(49):
            row, column = divmod(cell, 7)
            expected[n, :, row, column] = x[n, :, row, column] * factors[n, cell] + summands[n]
    torch.testing.assert_close(head.iterative.refine(x, z, b), expected)
    second = head.bbox_head(expected)
    torch.testing.assert_close(head.steps(x)[1], second)


def test_identity_start_begins_at_the_first_feature():
    head = roi_head(identity_start=True)
    x = torch.randn(5, D, 7, 7)
    z, b = head.bbox_head(x)
    assert (head.iterative.refine(x, z, b) - x).abs().mean() < 0.05 * x.abs().mean()
    for layer in (head.iterative.mlp_cls[-1], head.iterative.mlp_loc[-1]):
        assert 0.005 < layer.weight.std() < 0.02
        torch.nn.init.zeros_(layer.weight)
    assert torch.equal(head.iterative.refine(x, z, b), x)


def test_a_checkpoint_with_the_former_names_loads():
    """The MLPs were parameters of the RoI head itself."""
    saved, head = roi_head(layer_norm=True), roi_head(layer_norm=True)
    former = {k.replace("iterative.", ""): v for k, v in saved.state_dict().items()}
    assert "mlp_cls.0.weight" in former and "mlp_loc.2.bias" in former
    head.load_state_dict(former)
    x = torch.randn(3, D, 7, 7)
    assert all(
        torch.equal(a, b)
        for ours, theirs in zip(head.steps(x), saved.steps(x), strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_a_results_folder_with_the_former_names_is_continued():
    model, other = mask_rcnn(paradigm="iterative"), mask_rcnn(paradigm="iterative")
    former = {k.replace("iterative.", ""): v for k, v in other.state_dict().items()}
    former["roi_head.mlp_cls.0.weight"] = torch.full_like(former["roi_head.mlp_cls.0.weight"], 0.5)
    state = {"state_dict": former, "meta": {"classes": C}}
    load_weights(model, state, "final.pth")
    assert (model.roi_head.iterative.mlp_cls[0].weight == 0.5).all()
    assert "roi_head.mlp_cls.0.weight" in former, "the checkpoint itself is not changed"
    del former["roi_head.mlp_cls.0.weight"]
    with pytest.raises(UserError, match=r"differs in roi_head\.iterative\.mlp_cls\.0"):
        load_weights(model, state, "final.pth")


def test_one_step_has_no_parameters_that_learn_nothing():
    iterative = roi_head(num_steps=1, step_weights=[1.0]).iterative
    assert not list(iterative.parameters())


@pytest.mark.parametrize("kind", ["IterativeRoIHead", "RefinementRoIHead"])
def test_the_last_loss_trains_the_first_step(kind):
    head = roi_head(kind)
    steps = head.steps(torch.randn(4, D, 7, 7))
    for prediction in steps[0]:
        prediction.retain_grad()
    labels = torch.tensor([0, 1, C, 2])
    head.classification_loss(steps[2][0], labels, torch.ones(4), 2)["loss_cls"].backward()
    assert all(prediction.grad.abs().sum() > 0 for prediction in steps[0])


def losses_by_hand(head, steps, targets):
    """Losses of the steps for Eq. 19; α is 0, so every step has plain cross entropy."""
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

    def weighted(values):
        return 0.2 * values[0] + 0.2 * values[1] + 0.6 * values[2]

    torch.testing.assert_close(losses["loss_cls"], weighted(ce))
    expected = box[-1] if regression == "last" else weighted(box)
    torch.testing.assert_close(losses["loss_bbox"], expected)
    assert set(losses) == {"loss_cls", "loss_bbox", "acc"}


def test_the_loss_of_sampled_rois_is_that_of_the_steps_in_order():
    head = roi_head(alpha=0.0, step_weights=(0.1, 0.3, 0.6), regression="each")
    x = (torch.randn(1, D, 24, 24),)
    found = head.bbox_loss(x, [sampling()])["loss_bbox"]
    targets = head.bbox_head.get_targets([sampling()], head.train_cfg)
    expected = head.step_losses(head.step_predictions(x, rois()), rois(), *targets)
    assert {key: value.item() for key, value in found.items()} == pytest.approx(
        {key: value.item() for key, value in expected.items()}
    )


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
    a, b = (head.bbox_loss(x, [sampling()])["loss_bbox"] for head in (ours, stock))
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", ["IterativeRoIHead", "RefinementRoIHead"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_head_predicts_as_often_as_it_has_steps(kind, steps):
    head = roi_head(kind, num_steps=steps, step_weights=[1 / steps] * steps)
    x = torch.randn(4, D, 7, 7)
    predictions = head.steps(x)
    assert len(predictions) == steps
    torch.testing.assert_close(predictions[0], head.bbox_head(x))
    for before, after in pairwise(predictions):
        assert not torch.equal(before[0], after[0])


def test_rois_without_weight_do_not_count():
    """In MMDetection they are those that the sampler padded a batch with."""
    head = roi_head(alpha=0.0)
    logits, labels = torch.randn(5, C + 1), torch.tensor([0, 3, C, 1, C])
    weights = torch.tensor([1.0, 0, 1, 0, 0])
    for chosen in (weights, weights[:1], weights[1:2], weights[:0]):
        n = len(chosen)
        (loss,) = head.classification_loss(logits[:n], labels[:n], chosen, 0).values()
        ce = torch.nn.functional.cross_entropy(logits[:n], labels[:n], reduction="none")
        torch.testing.assert_close(loss, (ce * chosen).sum() / max(1, int(chosen.sum())))


def test_the_accuracy_is_that_of_the_last_step():
    head = roi_head(alpha=0.0)
    labels = torch.tensor([0, 3, C, 1])
    right, wrong = (20 * torch.eye(C + 1)[labels.roll(k)] for k in (0, 1))
    boxes = torch.zeros(4, 4 * C)
    targets = labels, torch.ones(4), torch.zeros(4, 4), torch.ones(4, 4)
    for last, accuracy in ((right, 100), (wrong, 0)):
        other = wrong if last is right else right
        steps = [(logits, boxes) for logits in (other, other, last)]
        assert head.step_losses(steps, None, *targets)["acc"] == accuracy


def test_the_defaults_of_the_heads_are_those_of_the_paper_and_of_loce():
    head = roi_head(hidden=512)
    assert (head.num_steps, head.step_weights) == (3, (0.2, 0.2, 0.6))
    assert head.regression == "last" and head.test_cls_step is head.test_reg_step is None
    defaults = {
        name: p.default for name, p in inspect.signature(IterativeRoIHead).parameters.items()
    }
    assert (defaults["hidden"], defaults["layer_norm"], defaults["identity_start"]) == (512, 0, 0)
    plain = IterativePrediction(logits=C + 1, deltas=4 * C)  # for Mask R-CNN's RoI features
    features, logits, deltas = torch.ones(2, 256, 7, 7), torch.ones(2, C + 1), torch.ones(2, 4 * C)
    assert plain.refine(features, logits, deltas).shape == features.shape
    defaults = {name: p.default for name, p in inspect.signature(LOCERoIHead).parameters.items()}
    expected = {"memory": 80, "jitter": 16, "classes": 8, "per_class": 4}
    assert {name: defaults[name] for name in expected} == expected


def test_one_pass_gives_the_predictions_of_every_step():
    x, boxes = (torch.randn(1, D, 24, 24),), rois()
    head = roi_head()
    steps = head.step_predictions(x, boxes)
    assert len(steps) == 3
    assert [prediction.shape[1] for prediction in steps[0]] == [C + 1, 4 * C]
    assert torch.equal(head._bbox_forward(x, boxes)["cls_score"], steps[2][0])
    head.test_cls_step, head.test_reg_step = 0, 1
    out = head._bbox_forward(x, boxes)
    assert torch.equal(out["cls_score"], steps[0][0]) and torch.equal(out["bbox_pred"], steps[1][1])


def test_layer_norm_is_on_the_logits_only():
    head = roi_head(layer_norm=True)
    norm = head.iterative.mlp_cls[0]
    assert isinstance(norm, torch.nn.LayerNorm) and norm.normalized_shape == (C + 1,)
    assert not any(isinstance(m, torch.nn.LayerNorm) for m in head.iterative.mlp_loc)
    assert not any(isinstance(m, torch.nn.LayerNorm) for m in roi_head().modules())


@pytest.mark.parametrize(
    "wrong",
    [
        {"step_weights": [1.0]},
        {"regression": "first"},
        {"num_steps": 2, "step_weights": [0.5, 0.5]},
    ],
)
def test_settings_that_do_not_agree_are_refused(wrong):
    with pytest.raises(UserError):
        roi_head(loss_steps=3, **wrong)


@pytest.mark.parametrize("loss, paradigm", EXPERIMENTS)
def test_mask_rcnn_trains_and_predicts(loss, paradigm):
    model = mask_rcnn(loss, paradigm, pcb=loss in ("softmax", "eqlv2", "seesaw"))
    images, samples = torch.rand(2, 3, 96, 96), [sample() for _ in range(2)]
    losses = model.loss(images, samples)
    total = sum(v if torch.is_tensor(v) else sum(v) for k, v in losses.items() if "loss" in k)
    total.backward()
    assert total.isfinite()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    head = model.roi_head.bbox_head
    logits = torch.randn(3, head.fc_cls.out_features)
    assert head.loss_cls.get_activation(logits).shape == (3, C + 1)
    model.eval()
    with torch.no_grad():
        results = model.predict(images, samples, rescale=False)
    keys = set(results[0].pred_instances.keys())
    assert len(results) == 2 and keys >= {"bboxes", "scores", "labels", "masks"}


def test_eqlv2_starts_with_its_prior_and_normalises_logits():
    head = mask_rcnn("eqlv2", "iterative").roi_head
    torch.testing.assert_close(head.bbox_head.fc_cls.bias, torch.full((C + 1,), -6.907))
    assert 0.005 < head.bbox_head.fc_cls.weight.std() < 0.02
    assert head.bbox_head.fc_reg.weight.std() < 0.002
    assert isinstance(head.iterative.mlp_cls[0], torch.nn.LayerNorm)


def test_seesaw_has_normed_predictors():
    head = mask_rcnn("seesaw", "plain").roi_head
    box, mask = head.bbox_head.fc_cls, head.mask_head.conv_logits
    assert (type(box).__name__, type(mask).__name__) == ("NormedLinear", "NormedConv2d")
    assert box.temperature == mask.temperature == 20
    assert box.out_features == C + 2


def test_deep_supervision_classifies_three_depths():
    head = roi_head("DeepSupervisionRoIHead")
    x = torch.randn(4, D, 7, 7)
    first, second = head.bbox_head.shared_fcs
    h1 = first(x.flatten(1)).relu()
    h2 = second(h1).relu()
    expected = head.aux_cls[0](x.flatten(1)), head.aux_cls[1](h1), head.bbox_head.fc_cls(h2)
    for (z, b), truth in zip(head.steps(x), expected, strict=True):
        torch.testing.assert_close(z, truth)
        torch.testing.assert_close(b, head.bbox_head.fc_reg(h2))
    torch.testing.assert_close(head.steps(x)[-1], head.bbox_head(x))
    for layer in head.aux_cls:
        assert 0.005 < layer.weight.std() < 0.02 and not layer.bias.any()
    with pytest.raises(UserError):
        roi_head("DeepSupervisionRoIHead", regression="each")


def test_refinement_concatenates_predictions_and_feature():
    head = roi_head("RefinementRoIHead")
    x = torch.randn(4, D, 7, 7)
    f = x.flatten(1)
    for fc in head.bbox_head.shared_fcs:
        f = fc(f).relu()
    z, b = head.bbox_head(x)
    for prediction in head.steps(x):
        torch.testing.assert_close(prediction, (z, b))
        h = head.refine(torch.cat([f, z.softmax(1)[:, :C], b], 1)).relu()
        z, b = head.bbox_head.fc_cls(h), head.bbox_head.fc_reg(h)
    bound = (3 / head.refine.in_features) ** 0.5  # Kaiming, as the other layers of CrowdDet
    assert 0.95 * bound < head.refine.weight.abs().max() <= bound and not head.refine.bias.any()
    one_step = roi_head("RefinementRoIHead", num_steps=1, step_weights=[1.0])
    assert len(list(one_step.parameters())) == len(list(head.bbox_head.parameters()))


@pytest.mark.parametrize("kind", ["DeepSupervisionRoIHead", "RefinementRoIHead"])
@pytest.mark.parametrize(
    "layers",
    [
        {"num_shared_fcs": 0, "num_cls_fcs": 2, "num_reg_fcs": 2},
        {"num_shared_fcs": 2, "num_cls_fcs": 1},
        {"num_shared_fcs": 2, "num_reg_fcs": 1},
    ],
)
def test_heads_on_shared_layers_refuse_other_box_heads(kind, layers):
    with pytest.raises(UserError, match="Shared2FCBBoxHead"):
        roi_head(kind, bbox_head={"type": "ConvFCBBoxHead", **layers})


def test_deep_supervision_needs_a_step_for_each_depth():
    with pytest.raises(UserError, match="2 steps on a box head with 2 shared layers"):
        roi_head("DeepSupervisionRoIHead", num_steps=2, step_weights=[0.5, 0.5])


def test_loce_overwrites_the_oldest_features():
    memory = FeatureMemory(3, 4, (1, 1, 1))
    for k in range(3):
        values = torch.tensor([10.0 * k, 10.0 * k + 1])
        memory.write(values.view(2, 1, 1, 1), values[:, None].expand(2, 4), torch.tensor([1, 1]))
    memory.write(torch.full((1, 1, 1, 1), 7.0), torch.full((1, 4), 7.0), torch.tensor([2]))
    assert memory.features[1].flatten().tolist() == [20, 21, 10, 11]
    assert memory.filled.tolist() == [0, 4, 1]
    features, targets, labels = memory.draw(torch.ones(3), classes=8, per_class=4)
    # Never a class without features.
    assert sorted(labels.unique().tolist()) == [1, 2] and len(labels) == 8
    assert (features.flatten()[labels == 2] == 7).all()
    assert torch.equal(features.flatten(), targets[:, 0])
    empty = FeatureMemory(3, 4, (1, 1, 1)).draw(torch.ones(3), 8, 4)
    assert [len(x) for x in empty] == [0, 0, 0]


def test_loce_keeps_the_newest_of_more_features_than_it_holds():
    memory, values = FeatureMemory(2, 3, (1, 1, 1)), torch.arange(5.0)
    memory.write(values.view(5, 1, 1, 1), values[:, None].expand(5, 4), torch.ones(5).long())
    assert sorted(memory.features[1].flatten().tolist()) == [2, 3, 4]
    assert torch.equal(memory.features[1].flatten(), memory.targets[1, :, 0])


def test_loce_moves_sides_by_up_to_a_sixth_of_their_length():
    boxes = torch.tensor([[10.0, 20, 70, 50], [0, 0, 12, 120]])
    moved = jitter_boxes(boxes, 1000).view(2, 1000, 4) - boxes[:, None]
    bound = torch.tensor([[10.0, 5, 10, 5], [2, 20, 2, 20]])
    for reach in (moved.amax(1), -moved.amin(1)):
        assert (reach <= bound + 1e-4).all() and (reach > 0.98 * bound).all()


def test_loce_trains_on_stored_features_of_the_class_with_the_low_score():
    model = mask_rcnn("loce")
    head, drawn = model.roi_head, []
    head.classes, draw = 1, head.memory.draw
    head.memory.draw = lambda *args: drawn.append(draw(*args)) or drawn[-1]
    for _ in range(3):
        head.bbox_head.loss_cls.scores[[0, 4]] = torch.tensor([1.0, 1e-6])
        model.loss(torch.rand(1, 3, 96, 96), [sample()])  # an object of class 0, one of class 4
    assert [labels.unique().tolist() for _, _, labels in drawn] == [[4]] * 3


def test_loce_draws_low_scoring_classes_more_often():
    memory = FeatureMemory(2, 1, (1, 1, 1))
    memory.write(torch.zeros(2, 1, 1, 1), torch.zeros(2, 4), torch.tensor([0, 1]))
    weights = 1 / torch.tensor([0.9, 0.1])
    drawn = [memory.draw(weights, classes=1, per_class=1)[2] for _ in range(500)]
    assert 0.86 < torch.cat(drawn).float().mean() < 0.94


def test_loce_scores_are_means_over_each_objects_rois():
    logits, labels = torch.randn(6, C + 1), torch.tensor([2, 2, 4, 2, C, C])
    scores, classes = mean_scores(logits, labels, torch.tensor([5, 0, 3, 5, -1, -1]), C)
    p = logits.softmax(1)
    assert classes.tolist() == [2, 4, 2]
    torch.testing.assert_close(scores, torch.stack([p[1, 2], p[2, 4], (p[0, 2] + p[3, 2]) / 2]))


def test_loce_keeps_objects_and_drawn_classes_apart():
    """Also in a batch with fewer RoIs than there are classes."""
    head, drawn = mask_rcnn("loce").roi_head, torch.tensor([1, 2, 3])
    boxes, found = rois(3)[:, 1:], []
    sampled = SimpleNamespace(
        priors=boxes,
        pos_priors=boxes,
        neg_priors=boxes[:0],
        pos_gt_bboxes=boxes,
        pos_gt_labels=torch.tensor([0, 0, 5]),
        pos_assigned_gt_inds=torch.tensor([0, 1, 2]),
        num_gts=3,
    )
    features = torch.randn(3, *head.memory.features.shape[2:])
    head.memory.draw = lambda *_: (features, torch.zeros(3, 4), drawn)
    head.bbox_head.loss_cls.update_scores = lambda means, classes: found.append(classes)
    x = tuple(torch.randn(1, features.shape[1], 24 // 2**k, 24 // 2**k) for k in range(4))
    head.bbox_loss(x, [sampled])
    assert sorted(found[0].tolist()) == [0, 0, 1, 2, 3, 5]


def test_loce_is_filled_once_and_resumes_identically(tmp_path):
    runs = []
    for resumed in (False, True):
        torch.manual_seed(1)
        model = mask_rcnn("loce")
        data = [{"inputs": torch.rand(3, 96, 96), "data_samples": sample()} for _ in range(3)]
        dataset = type("Data", (list,), {"get_cat_ids": lambda self, i: [0, 4]})(data)
        loader = SimpleNamespace(dataset=dataset)
        runner = SimpleNamespace(model=model, train_dataloader=loader, iter=0)
        pcb.mmdet.LOCEFillHook(images_per_class=2).before_train(runner)
        head = model.roi_head
        # Two images, 16 boxes around each object.
        assert head.memory.written.tolist() == [32, 0, 0, 0, 32, 0]
        updated = (head.bbox_head.loss_cls.scores != 0.01).nonzero().squeeze(1)
        assert updated.tolist() == [0, 4] and model.training
        images, values = torch.rand(2, 3, 96, 96), []
        for iteration in range(3):
            if resumed and iteration == 2:
                torch.save(model.state_dict(), tmp_path / "model.pth")
                model = mask_rcnn("loce")
                model.load_state_dict(torch.load(tmp_path / "model.pth"))
                runner.model = model
                pcb.mmdet.LOCEFillHook().before_train(runner)
            torch.manual_seed(iteration)
            losses = model.loss(images, [sample(), sample()])
            values.append([losses[k].item() for k in ("loss_cls", "loss_bbox")])
        runs.append((values, model.roi_head.memory.written.tolist()))
    assert runs[0] == runs[1] and runs[0][1][0] == 32 + 3 * 2 * 16


def test_a_large_memory_of_loce_is_filled_anew_on_a_resume(monkeypatch):
    """At the size of LVIS a checkpoint of 5 GB could not be written before a preempted job ends."""
    monkeypatch.setattr(pcb.heads.loce, "IN_CHECKPOINTS", 0)
    data = [{"inputs": torch.rand(3, 96, 96), "data_samples": sample()} for _ in range(3)]
    dataset = type("Data", (list,), {"get_cat_ids": lambda self, i: [0, 4]})(data)
    loader = SimpleNamespace(dataset=dataset)
    first, resumed = mask_rcnn("loce"), mask_rcnn("loce")
    runner = SimpleNamespace(model=first, train_dataloader=loader, iter=0)
    pcb.mmdet.LOCEFillHook(images_per_class=2).before_train(runner)
    state = first.state_dict()
    assert not any("memory" in key for key in state)
    resumed.load_state_dict(state)
    runner = SimpleNamespace(model=resumed, train_dataloader=loader, iter=5)
    pcb.mmdet.LOCEFillHook(images_per_class=2).before_train(runner)
    assert resumed.roi_head.memory.written.tolist() == [32, 0, 0, 0, 32, 0]
    # The mean scores are those of the checkpoint.
    ours, theirs = (m.roi_head.bbox_head.loss_cls.scores for m in (first, resumed))
    assert torch.equal(ours, theirs) and resumed.training


def test_the_memory_of_loce_is_in_checkpoints_of_the_small_scales_only():
    with torch.device("meta"):
        lvis, mini = FeatureMemory(1230, 80, (256, 7, 7)), FeatureMemory(60, 80, (48, 7, 7))
    assert lvis.features.nbytes > 4.9e9 and not lvis.state_dict()
    assert set(mini.state_dict()) == {"features", "targets", "written"}


LARGE_AND_SMALL = torch.tensor(  # sides of 300, 440 and 7 pixels, at odd positions
    [
        [0, 1001.3, 20.7, 1301.3, 320.7],
        [0, 401.1, 7.3, 841.1, 447.3],
        [0, 901.6, 555.2, 908.6, 562.2],
    ]
)


def levels_used(extractor, features, monkeypatch):
    """The level of each RoI and the RoIs that an extractor pools."""
    seen = {}
    levels = extractor.map_roi_levels

    def spy(rois, count):
        seen["rois"], seen["levels"] = rois, levels(rois, count)
        return seen["levels"]

    monkeypatch.setattr(extractor, "map_roi_levels", spy)
    extractor(features, LARGE_AND_SMALL)
    return seen


PYRAMID = {
    "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 1},
    "out_channels": D,
    "featmap_strides": [4, 8, 16, 32],
}


def test_the_float32_extractor_takes_the_same_levels_from_float16_features(monkeypatch):
    features = [torch.rand(1, D, 800 // s, 1344 // s).half() for s in (4, 8, 16, 32)]
    ours = MODELS.build({"type": "Float32RoIExtractor", **PYRAMID})
    seen = levels_used(ours, features, monkeypatch)
    assert seen["levels"].tolist() == [2, 2, 0] and torch.equal(seen["rois"], LARGE_AND_SMALL)
    # What it replaces: areas overflow in float16, and corners move by up to half a pixel.
    rois = LARGE_AND_SMALL.half()
    stock = MODELS.build({"type": "SingleRoIExtractor", **PYRAMID})
    assert stock.map_roi_levels(rois, 4).tolist() == [3, 3, 0]
    assert (rois.float() - LARGE_AND_SMALL).abs().max() > 0.3


def test_in_float16_the_pipeline_pools_from_the_levels_of_float32(monkeypatch):
    """The outputs of FPN and RPN are float32, as in MMDetection 2."""
    model = mask_rcnn("softmax")
    make_outputs_readable(model)
    kinds = []
    for module in (model.neck, model.rpn_head):
        module.register_forward_hook(lambda _, inputs, outputs: kinds.append(outputs))
    with torch.autocast("cpu", dtype=torch.float16):
        features = model.extract_feat(torch.rand(1, 3, 64, 64))
        model.rpn_head(features)
        assert model.neck.fpn_convs[0](features[0]).dtype == torch.float16  # autocast is on
    tensors = [t for outputs in kinds for t in flattened(outputs)]
    assert {t.dtype for t in tensors} == {torch.float32}


@pytest.mark.parametrize(("loss", "paradigm"), EXPERIMENTS)
def test_every_detector_trains_where_autocast_mixes_types(loss, paradigm):
    """As on a GPU: convolutions yield float16, softmax float32."""
    model = mask_rcnn(loss, paradigm)
    make_outputs_readable(model)
    with CudaAutocast():
        losses = model.loss(torch.rand(1, 3, 64, 64), [sample()])
    values = [value for value in losses.values() if value is not None]
    total = sum(v for value in values for v in (value if isinstance(value, list) else [value]))
    total.backward()
    assert total.dtype == torch.float32 and total.isfinite()


def flattened(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in flattened(output)]


def test_the_matrix_is_in_the_checkpoint(tmp_path):
    one, two = mask_rcnn("softmax", "iterative"), mask_rcnn("softmax", "iterative")
    one.loss(torch.rand(1, 3, 96, 96), [sample()])
    torch.save(one.state_dict(), tmp_path / "model.pth")
    two.load_state_dict(torch.load(tmp_path / "model.pth"))
    bank = one.roi_head.bbox_head.loss_cls.confusion.bank
    assert bank.any() and torch.equal(bank, two.roi_head.bbox_head.loss_cls.confusion.bank)


def test_the_hook_sets_the_epoch_and_reports_the_start():
    model = mask_rcnn("softmax", "iterative")
    runner = SimpleNamespace(
        model=model, epoch=15, iter=7, message_hub=MessageHub("hook"), logger=MMLogger("hook")
    )
    hook = pcb.mmdet.PCBEpochHook()
    regulariser = model.roi_head.bbox_head.loss_cls.pcb
    regulariser.absent = list(range(C))
    hook.before_train_epoch(runner)
    hook.after_train_iter(runner, 0)
    assert regulariser.epoch == 16 and hook.KEY not in runner.message_hub.runtime_info
    runner.epoch = 16
    for runner.iter in (8, 9):
        hook.before_train_epoch(runner)
        hook.after_train_iter(runner, 0)
    assert regulariser.epoch == 17 and runner.message_hub.get_info(hook.KEY) == 8
