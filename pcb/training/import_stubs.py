"""Start without the parts of mmdet and torch that cost half of a process's start and that no detector here uses.

The workflow starts about a hundred processes, so their imports are a good part of the mini paper. `with lean():` puts
stand-ins in the place of a few modules while mmdet is imported and takes them away afterwards; `with uncompiled():` does so for
torch's compiler while a detector trains. Only the engine does this: `import pcb.mmdet` in somebody else's project leaves both as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pyarrow

# Their importers guard against an ImportError.
OPTIONAL = (
    "imagecorruptions",  # the corruptions of robustness benchmarks: numba, scikit-image
    "torch.distributed.optim",  # mmengine's sharded optimiser: torch's whole distributed tensor
    "pandas",  # pyarrow, when it first makes an array of numpy's
)
# Their importers only take names from them.
UNUSED = (
    "mmengine.model.wrappers.fully_sharded_distributed",  # FSDP: torch's whole distributed tensor, sympy
    "mmengine._strategy.fsdp",
    "mmdet.datasets.transforms.generate_line",  # lane lines: imgaug, scipy.stats, pyplot
    "mmdet.models.dense_heads.clr_head",
    "mmdet.utils.mot_error_visualize",  # pictures of tracking errors: pyplot
    "mmdet.models.trackers",  # scipy.optimize
    "mmdet.models.task_modules.tracking",
    "mmdet.models.task_modules.assigners.hungarian_assigner",  # matching as in DETR: scipy.optimize
    "mmdet.models.task_modules.assigners.topk_hungarian_assigner",
)


class StandIn(ModuleType):
    """A module of which any name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Absent:
    """A finder in front of the others that finds nothing of what is optional."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        if name in OPTIONAL:
            raise ModuleNotFoundError(name)


@contextmanager
def lean() -> Iterator[None]:
    """Within this context the modules above are absent or empty, as far as nothing has imported them yet."""
    places = {name: StandIn(name) for name in UNUSED if name not in sys.modules}
    sys.modules.update(places)
    sys.meta_path.insert(0, Absent)
    pyarrow.array(
        [0]
    ).to_numpy()  # remembers that there is no pandas, until somebody asks for a frame
    try:
        yield
    finally:
        sys.meta_path.remove(Absent)
        for name in places:
            sys.modules.pop(name, None)


class Uncompiled(ModuleType):
    """What torch's optimisers ask of torch._dynamo where nothing is compiled: to leave a function alone, and nothing."""

    @staticmethod
    def disable(fn, *args, **kwargs):
        return fn

    @staticmethod
    def graph_break(*args, **kwargs) -> None:
        pass


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within this context torch's optimisers do not import its compiler, 1.5 s, unless something did before."""
    name = "torch._dynamo"
    ours = Uncompiled(name)
    place = sys.modules.setdefault(name, ours)
    try:
        yield
    finally:
        if place is ours:
            del sys.modules[name]
