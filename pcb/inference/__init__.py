"""A trained detector run over a split: every evaluation variant in one pass."""

import pcb.training  # noqa: F401  imports mmdet faster than the modules here would
