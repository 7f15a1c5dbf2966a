"""Import mmdet without the parts that cost a third of a process's start and that no detector here uses.

The workflow starts about a hundred processes, so their imports are a good part of the mini paper. `with lean():` puts
stand-ins in the place of a few modules while mmdet is imported and takes them away afterwards. Only the engine does this:
`import pcb.mmdet` in somebody else's project leaves mmdet as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# Their importers guard against an ImportError.
OPTIONAL = (
    "imagecorruptions",         # the corruptions of robustness benchmarks: numba, scikit-image
    "torch.distributed.optim",  # mmengine's sharded optimiser: torch's whole distributed tensor
)
# Their importers only take names from them.
UNUSED = (
    "mmengine.model.wrappers.fully_sharded_distributed",              # FSDP: torch's whole distributed tensor, sympy
    "mmengine._strategy.fsdp",
    "mmdet.datasets.transforms.generate_line",                        # lane lines: imgaug, scipy.stats, pyplot
    "mmdet.models.dense_heads.clr_head",
    "mmdet.utils.mot_error_visualize",                                # pictures of tracking errors: pyplot
    "mmdet.models.task_modules.assigners.hungarian_assigner",         # matching as in DETR: scipy.optimize
    "mmdet.models.task_modules.assigners.topk_hungarian_assigner",
)


class StandIn(ModuleType):
    """A module of which any name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def lean() -> Iterator[None]:
    """Within this context the modules above are absent or empty, as far as nothing has imported them yet."""
    places = {**dict.fromkeys(OPTIONAL), **{name: StandIn(name) for name in UNUSED}}
    places = {name: place for name, place in places.items() if name not in sys.modules}
    sys.modules.update(places)
    try:
        yield
    finally:
        for name in places:
            sys.modules.pop(name, None)
