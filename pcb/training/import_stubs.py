"""Import mmdet without what no detector here uses: starting a training takes less time.

`import pcb.training` imports mmdet, with stand-ins for a few modules, before any module of the
package can do so. It also keeps torch's compiler out of a training that compiles nothing. This is
for the pipeline's own processes, of which a reproduction starts hundreds: `import pcb.mmdet`, the
plug-in, imports mmdet as it is.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType

import pyarrow

from pcb.import_stubs import blocked, replaced

# Their importers catch the ImportError.
BLOCKED = ("imagecorruptions", "torch.distributed.optim", "pandas")
# Their importers only bind names of theirs.
REPLACED = (
    "mmengine.model.wrappers.fully_sharded_distributed",
    "mmengine._strategy.fsdp",
    "mmdet.datasets.transforms.generate_line",
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
    """Import mmdet's models and data sets without what `BLOCKED` and `REPLACED` name."""
    stand_ins = {name: EmptyClasses(name) for name in REPLACED}
    # mmdet prints a line for every optional package that is not installed.
    with redirect_stdout(io.StringIO()), blocked(*BLOCKED), replaced(stand_ins):
        import mmdet.datasets
        import mmdet.models  # noqa: F401

        pyarrow.array([0]).to_numpy()  # pyarrow looks for pandas once, with its first array


@contextmanager
def without_compiler() -> Generator[None]:
    """Keep torch's optimisers from importing torch's compiler within this context."""
    with replaced({"torch._dynamo": NoCompiler("torch._dynamo")}):
        yield
