"""Stubs for imports of mmdet that no detector here uses, to speed up the start of jobs.

`import pcb.training` imports mmdet, with stubs for a few modules, before any other module of the
package does. `without_compiler` avoids the import of torch's compiler in a training that compiles
nothing. The plug-in, `import pcb.mmdet`, does not use this module and imports mmdet unchanged.

Without stubs, `import pcb.training.train` takes 4.2 s of CPU time, with all of them 1.7 s. Each
stub alone saves (minimum of a few starts, torch 2.13, mmdet 3.5.1, mmengine 0.10.12, pyarrow 26):

    mmdet...generate_line            1.2 s  scipy.stats, imgaug, numba: lane lines
    mmdet...clr_head                 0.9 s  matplotlib, scipy.interpolate: lane lines
    torch.distributed.optim          0.9 s  torch.distributed.tensor, sympy: sharded optimiser
    mmengine...fully_sharded_...     0.8 s  torch.distributed.fsdp, sympy
    mmengine._strategy.fsdp          0.7 s  torch.distributed.fsdp, sympy
    mmdet.models.trackers            0.6 s  scipy.optimize
    mmdet...tracking                 0.6 s  scipy.optimize
    mmdet...visualization_hook       0.5 s  matplotlib, when a training is built
    imagecorruptions                 0.5 s  numba, scipy.ndimage: corrupted images
    mmdet...topk_hungarian_assigner  0.5 s  scipy.optimize: matching as in DETR
    mmdet.utils.mot_error_visualize  0.5 s  matplotlib
    mmdet...hungarian_assigner       0.4 s  scipy.optimize
    pandas                           0.4 s  pyarrow looks for it, with its first array
    torch._dynamo                    1.3 s  the compiler, sympy (in `without_compiler`)
"""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType

from pcb.import_stubs import blocked, hide_pandas_from_pyarrow, replaced

# The modules that import these catch the ImportError.
BLOCKED = ("imagecorruptions", "torch.distributed.optim")
# The modules that import these only bind their names.
REPLACED = (
    "mmengine.model.wrappers.fully_sharded_distributed",
    "mmengine._strategy.fsdp",
    "mmdet.datasets.transforms.generate_line",
    "mmdet.engine.hooks.visualization_hook",
    "mmdet.models.dense_heads.clr_head",
    "mmdet.models.task_modules.assigners.hungarian_assigner",
    "mmdet.models.task_modules.assigners.topk_hungarian_assigner",
    "mmdet.models.task_modules.tracking",
    "mmdet.models.trackers",
    "mmdet.utils.mot_error_visualize",
)


class EmptyClasses(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class NoCompiler(ModuleType):
    """The part of torch._dynamo that torch's optimisers use while nothing is compiled."""

    @staticmethod
    def disable(fn, *args, **kwargs):
        """Return the function."""
        return fn

    @staticmethod
    def graph_break(*args, **kwargs) -> None:
        """Do nothing."""


def import_mmdet() -> None:
    """Import mmdet's models and data sets without the modules in `BLOCKED` and `REPLACED`."""
    stubs = {name: EmptyClasses(name) for name in REPLACED}
    # mmdet prints a line for every optional package that is not installed.
    with redirect_stdout(io.StringIO()), blocked(*BLOCKED), replaced(stubs):
        import mmdet.datasets
        import mmdet.engine
        import mmdet.models  # noqa: F401

        hide_pandas_from_pyarrow()


@contextmanager
def without_compiler() -> Generator[None]:
    """Keep torch's optimisers from importing torch's compiler within this context."""
    with replaced({"torch._dynamo": NoCompiler("torch._dynamo")}):
        yield
