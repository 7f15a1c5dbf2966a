"""What no CPU can show: parity, mixed precision, synchronisations, speed, stops and ranks on a GPU.

    .venv/bin/python tests/manual/gpu_day.py [--device cpu] [--out FILE] [SECTION ...]

Each section is timed, has a limit, and is isolated: if one fails, hangs or kills its process, this
is recorded and the others run. Everything ends within `--minutes` (10). The result is one JSON
under results/benchmarks/gpu/, named by the GPUs; a day of some sections replaces these in it.
`--device cpu` is a dry run with tiny sizes, whose figures mean nothing; the tests run it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers")]

RESULTS = ROOT / "results/benchmarks/gpu"
LIMITS = {  # section -> seconds
    "doctor": 90,
    "operators": 60,
    "losses": 60,
    "heads": 60,
    "precision": 90,
    "kinds": 60,
    "synchronisations": 60,
    "speed": 180,
    "trainings": 150,
    "evaluation": 120,
    "stop": 120,
    "ranks": 90,
}
CLASSES = {"cuda": 1203, "cpu": 40}
HALF = {"cuda": "float16", "cpu": "bfloat16"}  # a CPU is slow in float16
SIZES = {"cuda": (800, 1344), "cpu": (64, 96)}  # of images: 1333x800, padded
TOLERANCE = 1e-3  # relative, float32 on a GPU against a CPU
BAGS, LOCE = "v05_r50_random_bags_plain", "v05_r50_random_loce_plain"
PLAIN = "v05_r50_random_softmax_plain"
TINY = {  # of a dry run: the layers of R50-FPN with few channels
    "backbone": {"base_channels": 8},
    "neck": {"in_channels": [32, 64, 128, 256], "out_channels": 16},
    "rpn_head": {"in_channels": 16, "feat_channels": 16},
    "roi_head": {
        "bbox_roi_extractor": {"out_channels": 16},
        "bbox_head": {"in_channels": 16, "fc_out_channels": 32},
        "mask_roi_extractor": {"out_channels": 16},
        "mask_head": {"in_channels": 16, "conv_out_channels": 16},
    },
}


class Failure(Exception):
    """A section's requirement that does not hold; `args[1]` is what was measured."""


def require(condition: bool, what: str, measured: Any = None) -> None:
    if not condition:
        raise Failure(what, measured)


# Sections: each returns what it measured ------------------------------------------------------


def doctor(device: str) -> dict:
    """`pcb doctor` finds no error in the environment."""
    command = [sys.executable, "-m", "pcb", "doctor", "--device", device, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    require(not report["errors"], "pcb doctor reports errors", report)
    return report


def operators(device: str) -> dict:
    """NMS and RoIAlign give the same on both devices."""
    import torch
    from mmcv.ops import batched_nms, get_compiling_cuda_version, roi_align

    g = torch.Generator().manual_seed(0)
    corner = 700 * torch.rand(2000, 2, generator=g)
    boxes = torch.cat([corner, corner + 10 + 200 * torch.rand(2000, 2, generator=g)], 1)
    scores, classes = torch.rand(2000, generator=g), torch.randint(20, (2000,), generator=g)
    nms = {"type": "nms", "iou_threshold": 0.5}
    kept = [
        batched_nms(boxes.to(d), scores.to(d), classes.to(d), nms)[1].cpu().tolist()
        for d in ("cpu", device)
    ]
    features = torch.randn(1, 32, 100, 100, generator=g, requires_grad=True)
    rois = torch.cat([torch.zeros(64, 1), boxes[:64]], 1)
    grads = []
    for d in ("cpu", device):
        features.grad = None
        pooled = roi_align(features.to(d), rois.to(d), (7, 7), 0.125, 0, "avg", True)
        pooled.square().mean().backward()
        grads.append(features.grad.clone())
    different = relative(grads[1], grads[0])
    others = len(set(kept[0]) ^ set(kept[1]))  # an IoU may be rounded to the other side of 0.5
    require(others <= 2, "NMS keeps other boxes", {"kept": [len(k) for k in kept]})
    require(different < TOLERANCE, "RoIAlign has other gradients", different)
    return {
        "compiled_for": get_compiling_cuda_version(),
        "kept": len(kept[0]),
        "roi_align_difference": different,
    }


def losses(device: str) -> dict:
    """Losses, gradients and statistics of every loss are the same on both devices."""
    import torch
    from loss_cases import CASES, C

    import pcb.losses as library

    classes = CLASSES[device]
    everything = {"start_epoch": 1, "absent": range(classes)}
    cases = {name: (build, channels, C) for name, (build, channels) in CASES.items()} | {
        f"softmax, C = {classes}": (
            lambda: library.PCBCrossEntropyLoss(classes, 0.4, **everything),
            classes + 1,
            classes,
        ),
        f"seesaw, C = {classes}": (
            lambda: library.PCBSeesawLoss(classes, 0.05, **everything),
            classes + 2,
            classes,
        ),
        f"eqlv2, C = {classes}": (
            lambda: library.PCBEQLv2Loss(classes, 0.2, **everything),
            classes + 1,
            classes,
        ),
    }
    measured = {}
    for name, (build, channels, count) in cases.items():
        sides = [train_loss(build(), channels, count, d) for d in ("cpu", device)]
        measured[name] = max(relative(b, a) for a, b in zip(*sides, strict=True))
    wrong = {name: value for name, value in measured.items() if not value < TOLERANCE}
    require(not wrong, f"differ by more than {TOLERANCE}: {', '.join(wrong)}", measured)
    assert torch.get_default_dtype() == torch.float32
    return {"relative_difference": measured}


def train_loss(loss: Any, channels: int, classes: int, device: str, rois: int = 256) -> list:
    """Values, gradients and final statistics of four batches of three steps, on the CPU."""
    import torch

    loss, g = loss.to(device), torch.Generator().manual_seed(0)
    results = []
    for epoch in range(1, 5):
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(epoch)
        label = torch.randint(classes + 1, (rois,), generator=g).to(device)
        weight = torch.ones(rois, device=device)
        for step in range(3):
            z = torch.randn(rois, channels, generator=g).to(device).requires_grad_()
            value = loss(z, label, weight, avg_factor=float(rois), step=step)
            value = total(value) if isinstance(value, dict) else value
            value.backward()
            results += [value.detach().cpu(), z.grad.cpu()]
    return results + [buffer.float().cpu() for buffer in loss.buffers()]


def heads(device: str) -> dict:
    """Features and classification of every step of the heads are the same on both devices."""
    import tiny
    import torch

    torch.backends.cudnn.allow_tf32 = False  # its convolutions round to 10 bits
    measured: dict[str, Any] = {}
    for loss, paradigm in (("softmax", "plain"), ("softmax", "iterative"), ("seesaw", "iterative")):
        torch.manual_seed(0)
        model = tiny.mask_rcnn(loss, paradigm, start_epoch=1, absent=range(tiny.C)).eval()
        images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
        sides = []
        for d in ("cpu", device):
            model, head = model.to(d), model.roi_head
            with torch.no_grad():
                features = model.extract_feat(images.to(d))
                inputs = features[: head.bbox_roi_extractor.num_inputs]
                pooled = head.bbox_roi_extractor(inputs, tiny.rois().to(d))
                steps = head.steps(pooled) if hasattr(head, "steps") else [head.bbox_head(pooled)]
            sides.append([*(f.cpu() for f in features), *(z.cpu() for z, _ in steps)])
        measured[f"{loss}, {paradigm}"] = max(relative(b, a) for a, b in zip(*sides, strict=True))
    torch.backends.cudnn.allow_tf32 = True
    wrong = [name for name, value in measured.items() if not value < TOLERANCE]
    require(not wrong, f"differ by more than {TOLERANCE}: {', '.join(wrong)}", measured)
    return {"relative_difference": measured}


def precision(device: str) -> dict:
    """Mixed precision: levels of RoIs are those of float32; losses and matrix are close to them."""
    import torch
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    model = detector("ours", device)
    images, samples = scene(1, SIZES[device], CLASSES[device], device)
    sides = torch.logspace(2, 10, 400, base=2.0)  # boxes of 4 to 1024 px
    rois = torch.stack([0 * sides, 0 * sides + 3.3, 0 * sides + 5.7, 3.3 + sides, 5.7 + sides], 1)
    levels: list[torch.Tensor] = []
    original = SingleRoIExtractor.map_roi_levels

    def record(self, rois, num_levels):
        levels.append(original(self, rois, num_levels).cpu())
        return original(self, rois, num_levels)

    measured: dict[str, Any] = {}
    reference: dict[str, Any] = {}
    halves = dict.fromkeys((HALF[device], "bfloat16"))
    for name in ("float32", *halves):
        torch.manual_seed(0)
        levels.clear()
        enabled = name != "float32"
        dtype = getattr(torch, name) if enabled else None
        SingleRoIExtractor.map_roi_levels = record
        try:
            with torch.autocast(device, dtype=dtype, enabled=enabled), torch.no_grad():
                features = model.extract_feat(images)
                extractor = model.roi_head.bbox_roi_extractor
                extractor(features[: extractor.num_inputs], rois.to(device))
                (level,) = levels
                values = model.loss(images, samples)
        finally:
            SingleRoIExtractor.map_roi_levels = original
        found = {
            "levels": level,
            "loss": {k: float(v) for k, v in values.items() if "loss" in k and torch.is_tensor(v)},
            "matrix": matrix_after(device, dtype),
        }
        reference = reference or found
        measured[name] = {
            "other_levels": int((level != reference["levels"]).sum()),
            "losses": found["loss"],
            "matrix_difference": float((found["matrix"] - reference["matrix"]).abs().max()),
        }
    for name in halves:
        part = measured[name]
        require(part["other_levels"] == 0, f"{name} puts RoIs on other levels", measured)
        require(part["matrix_difference"] < 0.01, f"{name} gives another matrix", measured)
        finite = all(abs(value) < 1e4 for value in part["losses"].values())
        require(finite, f"{name}: a loss is not finite", measured)
    return measured


def matrix_after(device: str, dtype: Any, classes: int = 20, batches: int = 50) -> Any:
    """The confusion matrix of PCB's softmax loss after some batches of logits in this dtype."""
    import torch

    from pcb.losses import PCBCrossEntropyLoss

    loss = PCBCrossEntropyLoss(classes, 0.4, start_epoch=1, absent=range(classes)).to(device)
    loss.set_epoch(1)
    g = torch.Generator().manual_seed(0)
    for _ in range(batches):
        label = torch.randint(classes + 1, (256,), generator=g)
        z = torch.randn(256, classes + 1, generator=g)
        z[torch.arange(256), label] += 3
        z = z.to(device, dtype or torch.float32)
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            loss(z, label.to(device), torch.ones(256, device=device), avg_factor=256.0)
    return loss.confusion.matrix.float().cpu()


def kinds(device: str) -> dict:
    """Every kind of detector trains in mixed precision, with finite losses, and predicts."""
    import tiny
    import torch

    from pcb.training.memory_format import make_outputs_readable

    measured = {}
    half = HALF[device]
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)).to(device)
    for loss, paradigm in tiny.EXPERIMENTS:
        torch.manual_seed(0)
        model = tiny.mask_rcnn(loss, paradigm).to(device)
        make_outputs_readable(model)
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3)
        scaler = torch.amp.GradScaler(device, init_scale=64.0, enabled=half == "float16")
        values = []
        for _ in range(3):
            with torch.autocast(device, dtype=getattr(torch, half)):
                value = total(model.loss(images, [tiny.sample().to(device)]))
            optimizer.zero_grad()
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            values.append(float(value))
        with torch.no_grad():
            (result,) = model.eval().predict(images, [tiny.sample().to(device)])
        name = f"{loss}, {paradigm}"
        measured[name] = {"losses": values, "detections": len(result.pred_instances)}
        finite = all(abs(value) < 1e4 for value in values)
        require(finite, f"{name}: a loss is not finite", measured)
    return measured


def synchronisations(device: str) -> dict:
    """No line of this package waits for the GPU in an iteration; those of others are listed."""
    import torch

    step = iteration("ours", device)
    for _ in range(3):
        step()
    if device == "cpu":
        return {"note": "only a GPU has them"}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    where = Counter(place(w) for w in caught if "synchroni" in str(w.message))
    ours = {name: count for name, count in where.items() if name.startswith("pcb/")}
    measured = {"in_all": sum(where.values()), "places": dict(where.most_common(40)), "ours": ours}
    require(not ours, f"{sum(ours.values())} synchronisations in this package", measured)
    return measured


def place(warning: warnings.WarningMessage) -> str:
    """File and line of a warning: `pcb/…` of this package, `site-packages/…` of others."""
    name = warning.filename.removeprefix(f"{ROOT}/")
    return f"{re.sub(r'^.*(?=site-packages/)', '', name)}:{warning.lineno}"


def speed(device: str) -> dict:
    """Images/s and memory of R50-FPN beside the stock config, and PCB's share of an iteration."""
    import torch

    images = 2
    measured: dict[str, Any] = {
        "images": images,
        "size": "1333x800" if device == "cuda" else "tiny",
    }
    # Not the stock detector: mmcv's RoIAlign takes no bfloat16.
    others = ("plain, bfloat16", "ours, bfloat16") if device == "cuda" else ()
    for name in ("stock", "plain", "ours", *others):
        kind, _, dtype = name.partition(", ")
        step = iteration(kind, device, images, dtype)
        for _ in range(3 if device == "cuda" else 1):
            step()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = [timed(step, device) for _ in range(20 if device == "cuda" else 1)]
        measured[name] = {
            "images_per_second": images / median(seconds),
            "milliseconds": 1e3 * median(seconds),
            "slowest_milliseconds": 1e3 * max(seconds),
        }
        if device == "cuda":
            measured[name]["peak_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
        del step
        if device == "cuda":
            torch.cuda.empty_cache()
    ours, plain = measured["ours"]["milliseconds"], measured["plain"]["milliseconds"]
    measured["share_of_pcb"] = 1 - plain / ours  # matrix, soft targets and the two other steps
    measured["ours_by_stock"] = ours / measured["stock"]["milliseconds"]
    return measured


def trainings(device: str) -> dict:
    """BAGS and LOCE train both stages, with loader workers and mixed precision."""
    measured = {}
    with tiny_results(device) as (study, options):
        for run in (BAGS, LOCE):
            began = time.perf_counter()
            done = pcb("train", run, *options)
            require(done.returncode == 0, f"{run} ends with {done.returncode}", tail(done))
            record = json.loads(study.paths.train(run, 0).read_text(encoding="utf-8"))
            measured[run] = {
                "seconds": time.perf_counter() - began,
                "peak_memory_mib": (record.get("provenance") or record).get("peak_memory_mib"),
            }
    return measured


def evaluation(device: str) -> dict:
    """A training's detections, oracle and scores by the workflow's verbs (NorCal's γ from dev)."""
    measured: dict[str, Any] = {}
    with tiny_results(device) as (study, options):
        for step in ("train", "infer --split dev", "score --split dev", "infer", "oracle", "score"):
            verb, *split = step.split()
            began = time.perf_counter()
            done = pcb(verb, PLAIN, *split, *options)
            require(done.returncode == 0, f"{step} ends with {done.returncode}", tail(done))
            measured[step] = {"seconds": time.perf_counter() - began}
        metrics = json.loads(study.paths.metrics(PLAIN, 0).read_text(encoding="utf-8"))
        measured["scored"] = sorted(metrics["variants"])
    return measured


def stop(device: str) -> dict:
    """SIGTERM to the whole process group saves and ends with 143; the training resumes there."""
    measured: list[dict] = []
    with tiny_results(device, epochs=1000) as (_, options):
        for _ in range(2):
            command = [sys.executable, "-m", "pcb", "train", PLAIN, *options]
            process = subprocess.Popen(
                command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True
            )
            assert process.stdout
            printed = []
            for line in process.stdout:
                printed.append(line.rstrip())
                if " epoch " in line:  # loader workers run by now
                    break
            began = time.perf_counter()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            rest, _ = process.communicate(timeout=60)
            printed += rest.splitlines()
            saved = [int(n) for n in re.findall(r"saved at iteration (\d+)", rest)]
            measured.append(
                {
                    "status": process.returncode,
                    "seconds": time.perf_counter() - began,
                    "saved_at": max(saved, default=None),
                    "printed": printed[-5:],
                }
            )
            require(process.returncode == 143, "the status is not 143", measured)
            require(bool(saved), "nothing was saved", measured)
    first, second = measured
    require(second["saved_at"] > first["saved_at"], "it did not resume", measured)
    return {"stops": measured}


def ranks(device: str) -> dict:
    """Two ranks end with the same weights and matrix: NCCL on two GPUs, else gloo."""
    import torch

    from pcb.cluster.launcher import launch

    several = device == "cuda" and torch.cuda.device_count() > 1
    backend = "nccl" if several else "gloo"  # NCCL refuses two ranks on one GPU
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rank", folder, "--device", device]
        command += ["--backend", backend]
        status = launch(2, command)
        require(status == 0, f"the ranks end with {status}")
        first, second = (
            json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).iterdir())
        )
    require(first["state"] == second["state"], "the ranks disagree", [first, second])
    return {"backend": backend, "gpus": 2 if several else int(device == "cuda"), **first}


def rank(device: str, backend: str, folder: str) -> None:
    """Train a small detector on random images as one of two ranks, and write a digest."""
    import hashlib

    import tiny
    import torch
    import torch.distributed as dist
    from mmengine.model import MMDistributedDataParallel

    from pcb.cluster.launcher import join

    if device == "cuda" and backend == "gloo":
        os.environ["LOCAL_RANK"] = (
            "0"  # both ranks are on one GPU, of which MMEngine asks the index
        )
    join("cuda" if backend == "nccl" else "cpu", backend)
    torch.manual_seed(0)
    model = tiny.mask_rcnn("softmax", "iterative", start_epoch=1, absent=range(tiny.C)).to(device)
    model.roi_head.bbox_head.loss_cls.set_epoch(1)
    ids = [torch.cuda.current_device()] if device == "cuda" else None
    model = MMDistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    torch.manual_seed(1 + dist.get_rank())
    for _ in range(3):
        images = torch.randn(1, 3, 96, 96).to(device)
        loss = total(model(images, [tiny.sample().to(device)], mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    digest = hashlib.sha256()
    for value in model.module.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    name = Path(folder) / f"rank{dist.get_rank()}.json"
    name.write_text(
        json.dumps({"state": digest.hexdigest(), "world": dist.get_world_size()}), encoding="utf-8"
    )
    dist.destroy_process_group()


# What they share ------------------------------------------------------------------------------


def relative(value: Any, reference: Any) -> float:
    """Largest difference of two tensors, relative to the largest value; 0 of empty ones."""
    if not reference.numel():
        return 0.0
    scale = reference.abs().max().clamp(min=1e-6)
    return float((value.to(reference) - reference).abs().max() / scale)


def total(values: dict) -> Any:
    """Sum of the losses of a detector, of which some are lists."""
    found = [value for key, value in values.items() if "loss" in key]
    return sum(value if hasattr(value, "backward") else sum(value) for value in found)


def detector(kind: str, device: str) -> Any:
    """Build R50-FPN: stock heads, our softmax in one step, or ours: PCB in three steps."""
    import torch
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    import pcb.mmdet
    from pcb.study.experiment import PCB, Experiment
    from pcb.training.memory_format import make_outputs_readable
    from pcb.training.model import model_overrides

    init_default_scope("mmdet")
    config = Config.fromfile(str(ROOT / "configs/mmdet/lvis_r50.py"))
    config.model.backbone.init_cfg = None
    classes = CLASSES[device]
    if device == "cpu":
        config.merge_from_dict({"model": TINY})
    if kind == "stock":
        width = {"num_classes": classes}
        config.merge_from_dict({"model": {"roi_head": {"bbox_head": width, "mask_head": width}}})
    else:
        paradigm, pcb = ("iterative", PCB(0.4, 0.99)) if kind == "ours" else ("plain", None)
        experiment = Experiment("day", "v1", "r50", "rfs", "softmax", paradigm, pcb=pcb)
        overrides = model_overrides(
            experiment, num_classes=classes, start_epoch=1, absent=range(classes)
        )
        config.merge_from_dict({"model": overrides})
    torch.manual_seed(0)
    model = MODELS.build(config.model).train()
    if kind != "stock" or device == "cpu":  # mmcv's NMS takes no half precision on a CPU
        make_outputs_readable(model)
    if hasattr(model.roi_head.bbox_head.loss_cls, "set_epoch"):
        model.roi_head.bbox_head.loss_cls.set_epoch(1)
    return model.to(device)


def scene(images: int, size: tuple[int, int], classes: int, device: str) -> tuple[Any, list]:
    """Noise images with 12 objects of random classes, boxes and full masks."""
    import numpy as np
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    random, side = np.random.default_rng(0), min(size)
    samples = []
    for _ in range(images):
        corner = random.uniform(0, 0.6 * side, (12, 2))
        corners = [corner, corner + random.uniform(0.05 * side, 0.38 * side, (12, 2))]
        boxes = torch.tensor(np.concatenate(corners, 1), dtype=torch.float32)
        masks = np.zeros((12, *size), dtype=np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
        sample = DetDataSample(metainfo={**shapes, "scale_factor": (1.0, 1.0), "img_id": 0})
        labels = torch.tensor(random.integers(0, classes, 12), device=device)
        sample.gt_instances = InstanceData(
            bboxes=boxes.to(device), labels=labels, masks=BitmapMasks(masks, *size)
        )
        samples.append(sample)
    return torch.rand(images, 3, *size, device=device), samples


def iteration(kind: str, device: str, images: int = 2, dtype: str = "") -> Callable[[], None]:
    """A function that trains one iteration of a detector in mixed precision."""
    import torch

    model = detector(kind, device)
    batch, samples = scene(images, SIZES[device], CLASSES[device], device)
    dtype = dtype or HALF[device]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
    scaler = torch.amp.GradScaler(device, enabled=dtype == "float16")

    def step() -> None:
        with torch.autocast(device, dtype=getattr(torch, dtype)):
            loss = total(model.loss(batch, samples))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def timed(step: Callable[[], None], device: str) -> float:
    """Seconds of one call, until the GPU has finished."""
    import torch

    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@contextmanager
def tiny_results(device: str, epochs: int = 4) -> Iterator[tuple[Any, list[str]]]:
    """A study that trains in seconds, and the options that select it."""
    import training

    from pcb.files import write_json

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = training.tiny_study(folder / "results", training.scenes(folder / "data"))
        study.scale["hardware"].update(
            device=device, workers=2, gpus_per_job=int(device == "cuda"), channels_last=False
        )
        study.schedule["epochs"] = epochs
        study.scale["train"]["amp"] = "fp16" if device == "cuda" else "none"
        write_json(study.paths.study, study.resolved)
        yield study, ["--study", str(study.paths.study)]


def pcb(*arguments: str) -> subprocess.CompletedProcess:
    """Run a command of `pcb`."""
    command = [sys.executable, "-m", "pcb", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def tail(done: subprocess.CompletedProcess) -> list[str]:
    return (done.stdout + done.stderr).splitlines()[-15:]


SECTIONS: dict[str, Callable[[str], dict]] = {
    "doctor": doctor,
    "operators": operators,
    "losses": losses,
    "heads": heads,
    "precision": precision,
    "kinds": kinds,
    "synchronisations": synchronisations,
    "speed": speed,
    "trainings": trainings,
    "evaluation": evaluation,
    "stop": stop,
    "ranks": ranks,
}


# One process runs the sections; another watches it --------------------------------------------


def run_sections(names: list[str], device: str, journal: Path) -> None:
    """Run sections one after the other; note start and end of each in the journal."""
    for name in names:
        note(journal, {"section": name, "status": "started"})
        began = time.perf_counter()
        try:
            entry: dict[str, Any] = {"status": "ok", "measured": SECTIONS[name](device)}
        except Failure as failure:
            what, measured = failure.args
            entry = {"status": "failed", "error": what, "measured": measured}
        except Exception as error:  # recorded: the other sections are worth the time
            lines = traceback.format_exc().splitlines()
            entry = {"status": "failed", "error": repr(error), "traceback": lines[-12:]}
        seconds = round(time.perf_counter() - began, 1)
        note(journal, {"section": name, "seconds": seconds, **entry})


def note(journal: Path, entry: dict) -> None:
    with open(journal, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry, default=str) + "\n")


def supervise(names: list[str], device: str, deadline: float) -> list[dict]:
    """Run the sections in a process of their own, started again after each that kills or hangs it.

    Returns:
        One entry for each section, in order.
    """
    limit = 3.0 if device == "cpu" else 1.0  # the machine of a dry run may be busy
    finished: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        journal, log = Path(folder) / "journal", Path(folder) / "log"
        while todo := names[len(finished) :]:
            if time.monotonic() >= deadline:
                finished += [{"section": n, "status": "skipped", "error": "no time"} for n in todo]
                break
            journal.write_text("", encoding="utf-8")
            command = [sys.executable, __file__, "--child", str(journal), "--device", device, *todo]
            with open(log, "w", encoding="utf-8") as output:
                process = subprocess.Popen(
                    command, cwd=ROOT, start_new_session=True, stdout=output, stderr=output
                )
            try:
                finished += watch(process, journal, todo, deadline, limit)
                if finished[-1]["status"] != "ok":
                    finished[-1].setdefault(
                        "printed", log.read_text(encoding="utf-8").splitlines()[-60:]
                    )
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return finished


def watch(
    process: subprocess.Popen, journal: Path, todo: list[str], deadline: float, limit: float
) -> list[dict]:
    """Print and return the entries of a process until it ends, or a section's time is over.

    Args:
        process: Runs the sections.
        journal: Where it notes them.
        todo: Their names.
        deadline: End of the time for all sections.
        limit: Factor of the sections' own times.
    """
    entries: list[dict] = []
    began = time.monotonic()
    while True:
        ended = process.poll() is not None
        lines = [
            json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines() if line
        ]
        for entry in [e for e in lines if e["status"] != "started"][len(entries) :]:
            entries.append(entry)
            print(summary(entry), flush=True)
            began = time.monotonic()
        if len(entries) == len(todo):
            return entries
        name = todo[len(entries)]
        seconds = time.monotonic() - began
        problem = None
        if ended:
            problem = f"the process ended with status {process.returncode}"
        elif seconds > limit * LIMITS[name] or time.monotonic() > deadline:
            problem = f"no result after {seconds:.0f} s"
        if problem:
            status = "failed" if ended else "timeout"
            entries.append({"section": name, "status": status, "error": problem})
            print(summary(entries[-1]), flush=True)
            return entries
        time.sleep(0.1)


def summary(entry: dict) -> str:
    """A section in one line."""
    text = f"{entry['status']:<9}{entry['section']:<18}{entry.get('seconds', 0):6.1f} s"
    return f"{text}  {entry['error']}"[:160] if "error" in entry else text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: by the GPUs' names")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device, names = arguments.device, arguments.sections or list(SECTIONS)
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}")
    if arguments.rank:
        from pcb.cluster.launcher import note_failure

        try:
            rank(device, arguments.backend, arguments.rank)
        except Exception:
            note_failure()
            raise
        return 0
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    if arguments.child:
        run_sections(names, device, arguments.child)
        return 0
    began = time.monotonic()
    entries = supervise(names, device, began + 60 * arguments.minutes)

    from pcb.cluster import provenance
    from pcb.files import write_json

    hardware = provenance.hardware(device)
    gpus = hardware.get("gpus", [])
    name = re.sub(r"\W+", "-", f"{gpus[0]} x{len(gpus)}" if gpus else device).lower()
    path = arguments.out or RESULTS / f"{name}.json"
    machine = {
        "dry_run": device == "cpu",
        "hardware": hardware,
        "driver": driver(),
        "versions": provenance.versions(),
    }
    state = {"git": provenance.git(), "date": provenance.now()}
    sections = {entry.pop("section"): {**entry, **state} for entry in entries}
    write_json(path, {**machine, "sections": {**earlier(path, machine), **sections}})
    failed = [name for name, entry in sections.items() if entry["status"] != "ok"]
    print(f"{len(sections) - len(failed)} of {len(sections)} sections ok; {path}")
    return int(bool(failed))


def earlier(path: Path, machine: dict) -> dict:
    """The sections of an earlier day on the same machine, which a day of some sections keeps."""
    if not path.exists():
        return {}
    day = json.loads(path.read_text(encoding="utf-8"))
    return day["sections"] if {key: day.get(key) for key in machine} == machine else {}


def driver() -> str | None:
    """The version of the NVIDIA driver."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [None])[0]


if __name__ == "__main__":
    raise SystemExit(main())
