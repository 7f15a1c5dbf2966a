"""A RoI extractor that pools from the right level of the pyramid in mixed precision."""

from __future__ import annotations

from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor


class Float32RoIExtractor(SingleRoIExtractor):
    """MMDetection's SingleRoIExtractor, which computes in float32 also inside autocast.

    MMDetection 3 casts the RoIs to the type of the features. In float16 the area of a box larger
    than 256 x 256 pixels overflows, so that it is pooled from the coarsest level, and corners are
    rounded by up to half a pixel. MMDetection 2, with which the paper's configs ran, kept RoIs in
    float32.
    """

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Pool features of RoIs (n, 5: image, x1, y1, x2, y2) from the levels of a pyramid."""
        # MMDetection annotates a feature pyramid as a tuple of one tensor.
        levels = tuple(level.float() for level in feats)
        return super().forward(levels, rois.float(), roi_scale_factor)  # ty: ignore[invalid-argument-type]
