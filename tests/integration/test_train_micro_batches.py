"""A batch is one batch, for any number of micro-batches and in any precision."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from mmengine.optim import AmpOptimWrapper

from pcb.errors import UserError
from pcb.losses import Regulariser
from pcb.study import load_study
from pcb.study.checks import check_batch
from pcb.training import checkpoint
from pcb.training.memory_format import make_outputs_readable, to_channels_last
from pcb.training.sampler import EpochSampler


def shares(monkeypatch, rank, world, micro_batches):
    """The images of an epoch that a rank gets: (batches, micro-batches, images)."""
    monkeypatch.setattr("pcb.training.sampler.get_dist_info", lambda: (rank, world))
    sampler = EpochSampler(range(50), batch_size=16, seed=3, micro_batches=micro_batches)
    sampler.set_position(1, start=1)
    return np.array(list(sampler)).reshape(-1, micro_batches, 16 // (world * micro_batches))


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 4), (2, 2)])
def test_micro_batches_are_the_shares_of_more_ranks(monkeypatch, world, micro_batches):
    of_four = [shares(monkeypatch, rank, 4, 1)[:, 0] for rank in range(4)]
    for rank in range(world):
        share = shares(monkeypatch, rank, world, micro_batches)
        for j in range(micro_batches):
            assert (share[:, j] == of_four[j * world + rank]).all()


def test_the_matrix_is_the_same_with_and_without_micro_batches():
    g = torch.Generator().manual_seed(0)
    whole, split = Regulariser(5, 0.4), Regulariser(5, 0.4)
    for _ in range(3):
        probs, labels = (
            torch.rand(3, 12, 5, generator=g).softmax(-1),
            torch.randint(5, (12,), generator=g),
        )
        for step in range(3):
            whole.update_confusion(probs[step], labels, step)
        before = split.confusion.matrix.clone()
        with split.deferred_updates():
            for rows in (slice(0, 7), slice(7, 7), slice(7, 12)):
                for step in range(3):
                    split.update_confusion(probs[step, rows], labels[rows], step)
            assert torch.equal(split.confusion.matrix, before)
        assert torch.equal(split.confusion.bank, whole.confusion.bank)
        assert torch.equal(split.confusion.seen, whole.confusion.seen)


@pytest.mark.parametrize("gpus", range(1, 17))
def test_sixteen_images_are_shared_or_refused(gpus):
    scale = {
        "train": {"batch_size": 16},
        "hardware": {"device": "cuda", "gpus_per_job": gpus, "accumulate": 2},
    }
    if gpus in (1, 2, 4, 8):
        check_batch(scale, "lvis.yaml")
    else:
        with pytest.raises(
            UserError,
            match=f"a batch of 16 images cannot be shared by {gpus} GPUs in 2 micro-batches each",
        ) as error:
            check_batch(scale, "lvis.yaml")
        assert "one of 1, 2, 4, 8, 16" in error.value.fix


def test_a_batch_that_does_not_come_out_even_is_refused_before_anything_runs():
    with pytest.raises(
        UserError, match=r"lvis.yaml .*a batch of 16 images cannot be shared by 3 GPUs"
    ):
        load_study("lvis", overrides={"hardware": {"gpus_per_job": 3}})


def losses(model):
    """The losses of one image, after a backward pass, and the confusion matrix."""
    torch.manual_seed(0)
    model.zero_grad()
    outputs = model.loss(
        torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1)), [tiny.sample()]
    )
    total, logged = model.parse_losses(outputs)
    total.backward()
    return logged, model.roi_head.bbox_head.loss_cls.confusion


def test_channels_last_computes_the_same():
    model = tiny.mask_rcnn(paradigm="iterative", pcb=True)
    state = model.state_dict()
    usual, _ = losses(model)
    grad = model.backbone.conv1.weight.grad.clone()
    model.load_state_dict(state)
    to_channels_last(model)
    make_outputs_readable(model)
    assert model.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    turned, _ = losses(model)
    torch.testing.assert_close(turned, usual, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.backbone.conv1.weight.grad, grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", ["softmax", "eqlv2", "seesaw"])
def test_under_autocast_losses_and_statistics_are_float32(loss):
    model = tiny.mask_rcnn(loss=loss, paradigm="iterative", pcb=True)
    # Not channels last: torch's own bfloat16 convolutions on a CPU sometimes crash then.
    make_outputs_readable(model)
    classifier = model.roi_head.bbox_head.loss_cls
    classifier.set_epoch(17)
    classifier.confusion.seen += 1  # PCB acts
    dtypes = set()
    classifier.register_forward_pre_hook(lambda _, inputs: dtypes.add(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logged, confusion = losses(model)
    assert dtypes == {torch.bfloat16}
    for key, value in logged.items():
        assert value.isfinite() and (value.dtype == torch.float32 or "loss_cls" not in key), key
    assert all(
        value.isfinite().all()
        for value in classifier.state_dict().values()
        if value.is_floating_point()
    )
    assert confusion.bank.dtype == torch.float32 and confusion.bank.sum() > 0
    if loss != "eqlv2":  # of the sums of its rows nothing is lost to a short mantissa
        rows = confusion.matrix.sum(dim=1)
        assert torch.equal(rows > 0, confusion.seen > 1)
        torch.testing.assert_close(
            rows[rows > 0], torch.ones_like(rows[rows > 0]), rtol=0, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")
def test_the_loss_scale_of_fp16_travels_in_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True
    )

    def wrapper():
        weight = torch.nn.Parameter(torch.ones(2))
        made = AmpOptimWrapper(
            dtype="float16", optimizer=torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        )
        made.loss_scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        return weight, made

    (weight, first), (_, second) = wrapper(), wrapper()
    for _ in range(3):
        first.update_params(weight.sum())
    path = checkpoint.save_hashed(tmp_path, "iter00000003", {"optimizer": first.state_dict()})
    second.load_state_dict(checkpoint.load(path)["optimizer"])
    assert second.loss_scaler.state_dict() == first.loss_scaler.state_dict()
    assert (
        second.loss_scaler.get_scale() == 16
        and second.loss_scaler.state_dict()["_growth_tracker"] == 1
    )
