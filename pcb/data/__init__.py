"""Data: downloads, LVIS annotation files and the MMDetection data set made of them.

Only `lvis.dataset` and `lvis.masks` import torch.
"""
