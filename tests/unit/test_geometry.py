"""The IoU of code without torch equals mmdet's."""

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps

from pcb.geometry import box_iou


def test_box_iou_equals_mmdets():
    rng = np.random.default_rng(0)
    a, b = (
        np.concatenate([rng.uniform(0, 50, (n, 2)), rng.uniform(0, 40, (n, 2))], 1)
        for n in (30, 20)
    )
    corners = (torch.from_numpy(np.concatenate([x[:, :2], x[:, :2] + x[:, 2:]], 1)) for x in (a, b))
    np.testing.assert_allclose(box_iou(a, b), bbox_overlaps(*corners), atol=1e-12)


def test_boxes_without_area_overlap_nothing():
    empty = np.zeros((2, 4))
    assert box_iou(empty, empty).tolist() == [[0, 0], [0, 0]]
    assert box_iou(empty[:0], empty).shape == (0, 2)
