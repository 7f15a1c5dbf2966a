"""Autocast on a CPU with the operators that CUDA's autocast computes in float32.

Inside `torch.autocast("cpu", torch.float16)` a CPU's softmax stays in float16; a GPU's is float32.
Code that mixes the two types runs on a CPU and fails on a GPU.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# From PyTorch's documentation, "CUDA Ops that autocast to float32", without what nobody uses here.
FLOAT32 = set(
    """binary_cross_entropy_with_logits cosine_similarity cross_entropy cumprod cumsum dist exp
    expm1 group_norm kl_div l1_loss layer_norm log log10 log1p log2 log_softmax mse_loss nll_loss
    norm normalize pow __pow__ __rpow__ prod reciprocal rsqrt smooth_l1_loss softmax softmin
    softplus sum""".split()  # noqa: SIM905
)


class CudaAutocast(TorchFunctionMode):
    """Within it, autocast on the CPU computes CUDA's float32 operators in float32."""

    def __enter__(self):
        self.autocast = torch.autocast("cpu", torch.float16)
        self.autocast.__enter__()
        return super().__enter__()

    def __exit__(self, *reason):
        super().__exit__(*reason)
        return self.autocast.__exit__(*reason)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "").removesuffix("_")
        if name in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(lifted, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def lifted(value):
    half = isinstance(value, torch.Tensor) and value.dtype == torch.float16
    return value.float() if half else value
