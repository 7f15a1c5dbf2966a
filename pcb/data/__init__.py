"""Data: emoji-LVIS, the LVIS index and its checks, sampling, and the mmdet data set. Only `dataset` needs torch."""
