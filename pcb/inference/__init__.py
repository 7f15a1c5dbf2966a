"""A trained detector run over a split: every evaluation variant in one pass."""
