"""The cost of the iterative head of three steps, beside mmdet's StandardRoIHead with cross entropy.

With a GPU: the time of a training iteration (forward, backward, optimiser) of R50-FPN Mask R-CNN,
C = 1203, batch 16, 1333x800, fp16; the target is at most 5 % more. Without one: the floating-point
operations of such an iteration, counted on one image, and the CPU time of the box heads alone (1024
RoIs, one thread), of which the iterative head does three times the work and the refinement between.
Needs no data and no network: images, objects and weights are random.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from harness import Figure, by_turns, main
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch.utils.flop_counter import FlopCounterMode

import pcb.mmdet  # noqa: F401  registers
from pcb.study.experiment import PCB, Experiment
from pcb.training.model import model_overrides

CLASSES, SIZE, OBJECTS, ROIS = 1203, (800, 1344), 12, 1024
MOST = 1.05  # ours / stock


def detector(iterative: bool) -> torch.nn.Module:
    """Build the paper's R50 detector with softmax + PCB active, or mmdet's own heads and loss."""
    init_default_scope("mmdet")
    config = Config.fromfile("configs/mmdet/lvis_r50.py")
    config.model.backbone.init_cfg = None
    if iterative:
        experiment = Experiment(
            "head", "v1", "r50", "rfs", "softmax", "iterative", pcb=PCB(0.4, 0.99)
        )
        config.merge_from_dict(
            {
                "model": model_overrides(
                    experiment, num_classes=CLASSES, start_epoch=1, absent=range(CLASSES)
                )
            }
        )
    else:
        heads = {"num_classes": CLASSES}
        config.merge_from_dict({"model": {"roi_head": {"bbox_head": heads, "mask_head": heads}}})
    torch.manual_seed(0)
    return MODELS.build(config.model).train()


def batch(images: int, device: str) -> tuple[torch.Tensor, list[DetDataSample]]:
    """Make noise images with objects of random classes and boxes, and full masks."""
    random = np.random.default_rng(0)
    samples = []
    for _ in range(images):
        corner = random.uniform(0, 500, (OBJECTS, 2))
        boxes = torch.tensor(
            np.concatenate([corner, corner + random.uniform(30, 280, (OBJECTS, 2))], 1),
            dtype=torch.float32,
        )
        masks = np.zeros((OBJECTS, *SIZE), dtype=np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), SIZE)
        sample = DetDataSample(metainfo={**shapes, "scale_factor": (1.0, 1.0), "img_id": 0})
        labels = torch.tensor(random.integers(0, CLASSES, OBJECTS), device=device)
        sample.gt_instances = InstanceData(
            bboxes=boxes.to(device), labels=labels, masks=BitmapMasks(masks, *SIZE)
        )
        samples.append(sample)
    return torch.rand(images, 3, *SIZE, device=device), samples


def total(losses: dict) -> torch.Tensor:
    """Sum the losses of a detector, of which some are lists."""
    values = [value for key, value in losses.items() if "loss" in key]
    return sum(value if torch.is_tensor(value) else sum(value) for value in values)


def on_gpu(quick: bool) -> list[Figure]:
    """Time training iterations of both detectors."""
    images, samples = batch(4 if quick else 16, "cuda")

    def train(model, optimizer, scaler) -> None:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = total(model.loss(images, samples))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        torch.cuda.synchronize()

    sides = {}
    for name, iterative in (("ours", True), ("stock", False)):
        model = detector(iterative).cuda()
        optimizer = torch.optim.SGD(
            (p for p in model.parameters() if p.requires_grad), lr=1e-4, momentum=0.9
        )
        sides[name] = partial(train, model, optimizer, torch.amp.GradScaler("cuda"))
    seconds = by_turns(3 if quick else 20, **sides)
    what = f"training iteration, batch {len(samples)}, 1333x800, fp16"
    return [Figure(what, 1e3 * seconds["ours"], 1e3 * seconds["stock"], "ms", MOST)]


def operations(iterative: bool) -> float:
    """Count the GFLOP of forward and backward on one image."""
    model, (images, samples) = detector(iterative), batch(1, "cpu")
    with FlopCounterMode(display=False) as counter:
        total(model.loss(images, samples)).backward()
    return counter.get_total_flops() / 1e9


def box_heads(quick: bool) -> Figure:
    """Time the box heads and their losses on the CPU."""
    torch.set_num_threads(1)
    rois, label = 128 if quick else ROIS, torch.full((ROIS,), CLASSES)
    g = torch.Generator().manual_seed(0)
    label[: ROIS // 4] = torch.randint(CLASSES, (ROIS // 4,), generator=g)
    feats, weight = torch.randn(rois, 256, 7, 7), torch.ones(rois)

    def ours(head) -> None:
        steps = head.steps(feats)
        sum(
            w * head.classification_loss(z, label[:rois], weight, step)["loss_cls"]
            for step, (w, (z, _)) in enumerate(zip(head.step_weights, steps, strict=True))
        ).backward()

    def stock(head) -> None:
        z, _ = head.bbox_head(feats)
        head.bbox_head.loss_cls(z, label[:rois], weight, avg_factor=rois).backward()

    seconds = by_turns(
        2 if quick else 5,
        time.process_time,
        ours=partial(ours, detector(True).roi_head),
        stock=partial(stock, detector(False).roi_head),
    )
    what = f"box head and its loss on {rois} RoIs, forward and backward"
    return Figure(what, 1e3 * seconds["ours"], 1e3 * seconds["stock"], "ms")


def measure(quick: bool) -> list[Figure]:
    """Measure what this machine can."""
    if torch.cuda.is_available():
        return on_gpu(quick)
    what = "operations of a training iteration, one 1333x800 image"
    return [box_heads(quick), Figure(what, operations(True), operations(False), "GFLOP")]


if __name__ == "__main__":
    main("head", measure)
