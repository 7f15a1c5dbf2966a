"""The sections of an iteration of a mini training: what is worth making faster.

CPU milliseconds an iteration on one thread, of RFS with the iterative paradigm on emoji-LVIS, after
the first epochs, which fill the feature cache. A section counts without the sections within it;
"everything else" is in no line. `--quick` measures few iterations on few scenes, in which the first
epochs still show.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from harness import Figure, Stopwatch, main

RUN = "v05_r50_rfs_softmax_iterative"
SECTIONS = {  # name: (module, class, method) of each of its functions
    "data: sampler, augmentation, collation": [
        ("torch.utils.data.dataloader", "_SingleProcessDataLoaderIter", "_next_data")
    ],
    "data: what the model takes": [
        ("pcb.synthetic.frozen_backbone", "CachingPreprocessor", "forward")
    ],
    "frozen backbone, FPN, RPN": [
        ("pcb.synthetic.frozen_backbone", "FrozenBackboneMaskRCNN", "_cached")
    ],
    "assign RoIs": [("pcb.synthetic.remembered", "RememberingMaxIoUAssigner", "assign")],
    "sample RoIs": [("pcb.synthetic.remembered", "RememberingRandomSampler", "sample")],
    "RoIAlign": [("pcb.synthetic.remembered", "RememberingSingleRoIExtractor", "forward")],
    "box head, three steps": [("pcb.heads", "IterativeRoIHead", "steps")],
    "box targets": [("pcb.synthetic.remembered", "RememberingShared2FCBBoxHead", "get_targets")],
    "classification loss": [("pcb.heads", "SteppedRoIHead", "classification_loss")],
    "mask head": [("pcb.synthetic.remembered", "RememberingFCNMaskHead", "forward")],
    "mask targets and loss": [
        ("pcb.synthetic.remembered", "RememberingFCNMaskHead", "loss_and_target")
    ],
    "backward": [("torch", "Tensor", "backward")],
    "optimiser and clipping": [("mmengine.optim", "OptimWrapper", "step")],
    "seeds": [("pcb.training.loop", "", "seed_everything")],
    "checkpoint": [("pcb.training.checkpoint", "Checkpoints", "save")],
    "other hooks": [("pcb.training.runner", "Runner", "call_hook")],
}


def measure(quick: bool) -> list[Figure]:
    """Train and time the sections."""
    import torch
    from startup import prepare

    from pcb.study import load_study
    from pcb.training import build, loop
    from pcb.training.train import execute, weights

    torch.set_num_threads(1)
    skipped, iterations = (6, 6) if quick else (100, 100)
    watch, at = Stopwatch(SECTIONS), {}
    run_iter = loop.ResumableLoop.run_iter

    def first(self, index, batch):
        if self.iter == skipped:
            watch.reset()
            at["start"] = time.process_time()
        return run_iter(self, index, batch)

    loop.ResumableLoop.run_iter = first
    with tempfile.TemporaryDirectory() as folder:
        study = load_study(prepare(Path(folder), scenes=24 if quick else 200))
        work = Path(folder) / "work"
        work.mkdir()
        config = build.config(study, RUN, 0, work)
        del config.train_cfg["max_epochs"]
        config.train_cfg["max_iters"] = skipped + iterations
        execute(config, study, lambda runner: weights.initialise(runner.bare_model, study, "r50"))
        whole = time.process_time() - at["start"]
    return watch.figures(whole, iterations, "a whole iteration")


if __name__ == "__main__":
    main("training", measure)
