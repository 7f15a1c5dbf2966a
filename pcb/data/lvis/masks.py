"""Ground-truth masks as small as they are: what MMDetection's `BitmapMasks` says, to the bit, without whole-image bitmaps on the way.

Stock MMDetection draws each of an image's masks at full size, resizes, flips and pads every one, and sends all of them from the worker
to the training process: 14 MB and four fifths of a worker's time for an image with 13 objects at 1333x800. A `WindowMasks` holds what is
inside each object's box at the file's own resolution. Resizing (nearest), flipping and padding only choose rows and columns, the same
for all masks of an image, so they change two lists of numbers. Pixels are drawn where targets are computed: on the GPU, where there is one.

In a pipeline, `LoadWindowMasks` takes the place of `LoadAnnotations`.
"""

from __future__ import annotations

import cv2
import mmcv
import numpy as np
import torch
from mmcv.ops.roi_align import roi_align
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import BitmapMasks
from mmdet.structures.mask.structures import BaseInstanceMasks
from pycocotools import mask as coco

Window = tuple[int, int, np.ndarray]  # top, left and the pixels, (h, w) uint8


class WindowMasks(BaseInstanceMasks):
    """n masks of an image of (height, width).

    windows: of each mask the part that is not empty, in the image as it was loaded, `source` (height, width).
    rows (height,), columns (width,): which row and column of that image each of this one is; -1: none, a border.
    """

    def __init__(
        self,
        windows: list[Window],
        source: tuple[int, int],
        rows: np.ndarray | None = None,
        columns: np.ndarray | None = None,
    ):
        self.windows, self.source = windows, tuple(source)
        self.rows = np.arange(source[0]) if rows is None else rows
        self.columns = np.arange(source[1]) if columns is None else columns

    @classmethod
    def cut(cls, bitmaps: list[np.ndarray], source: tuple[int, int]) -> WindowMasks:
        """From whole bitmaps, (height, width) uint8 each."""
        return cls([window(bitmap) for bitmap in bitmaps], source)

    @property
    def height(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        return len(self.columns)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index) -> WindowMasks:
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return WindowMasks([self.windows[i] for i in chosen], self.source, self.rows, self.columns)

    def seen_through(self, rows: np.ndarray, columns: np.ndarray) -> WindowMasks:
        """Row `rows[i]` of this for row i of the new one, and so for columns; -1 stays empty."""
        return WindowMasks(
            self.windows,
            self.source,
            np.where(rows < 0, -1, self.rows[rows]),
            np.where(columns < 0, -1, self.columns[columns]),
        )

    # What MMDetection's pipeline and preprocessor ask for -------------------------------------------------------------

    def rescale(self, scale, interpolation: str = "nearest") -> WindowMasks:
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width), interpolation)

    def resize(self, out_shape: tuple[int, int], interpolation: str = "nearest") -> WindowMasks:
        assert interpolation == "nearest", "a mask has no values between 0 and 1"
        return self.seen_through(
            nearest(self.height, out_shape[0]), nearest(self.width, out_shape[1])
        )

    def flip(self, flip_direction: str = "horizontal") -> WindowMasks:
        rows, columns = np.arange(self.height), np.arange(self.width)
        return self.seen_through(
            rows[::-1] if flip_direction in ("vertical", "diagonal") else rows,
            columns[::-1] if flip_direction in ("horizontal", "diagonal") else columns,
        )

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> WindowMasks:
        assert pad_val == 0, "outside the image there is no object"
        places = [
            np.where(np.arange(new) < old, np.arange(new), -1)
            for new, old in zip(out_shape, (self.height, self.width), strict=True)
        ]
        return self.seen_through(*places)

    def crop(self, bbox: np.ndarray) -> WindowMasks:
        left, top, right, bottom = np.clip(bbox, 0, [self.width, self.height] * 2).astype(int)
        return self.seen_through(
            np.arange(top, max(bottom, top + 1)), np.arange(left, max(right, left + 1))
        )

    def crop_and_resize(
        self,
        bboxes,
        out_shape: tuple[int, int],
        inds: np.ndarray,
        device="cpu",
        interpolation: str = "bilinear",
        binarize: bool = True,
    ) -> BitmapMasks:
        """Mask targets of boxes (k, 4), the mask of box i being number `inds[i]`: RoIAlign, as in BitmapMasks.

        There each box gets a copy of its whole mask; here boxes of one object share it.
        """
        if not len(self):
            return BitmapMasks(np.empty((0, *out_shape), np.uint8), *out_shape)
        boxes = torch.as_tensor(bboxes).to(device)
        number = torch.as_tensor(inds).to(device, boxes.dtype)
        targets = boxes.new_zeros((0, *out_shape))
        if len(boxes):
            pixels = self.draw(device).to(boxes.dtype)[:, None]
            targets = roi_align(
                pixels, torch.cat([number[:, None], boxes], 1), out_shape, 1.0, 0, "avg", True
            ).squeeze(1)
        return BitmapMasks((targets >= 0.5 if binarize else targets).cpu().numpy(), *out_shape)

    # The pixels ----------------------------------------------------------------------------------------------------------

    def draw(self, device="cpu") -> torch.Tensor:
        """(n, height, width) uint8 on `device`; only the windows travel there."""
        height, width = self.source
        whole = torch.zeros(
            (len(self), height + 1, width + 1), dtype=torch.uint8, device=device
        )  # the last row and column: borders
        flat = torch.from_numpy(
            np.concatenate(
                [np.zeros(0, np.uint8), *(pixels.ravel() for *_, pixels in self.windows)]
            )
        ).to(device)
        sizes = [pixels.size for *_, pixels in self.windows]
        for mask, (top, left, pixels), part in zip(
            whole, self.windows, flat.split(sizes), strict=True
        ):
            mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = part.view(
                pixels.shape
            )
        rows, columns = (
            torch.from_numpy(place % size).to(device)
            for place, size in ((self.rows, height + 1), (self.columns, width + 1))
        )
        return whole[:, rows][:, :, columns]

    def to_ndarray(self) -> np.ndarray:
        return self.draw().numpy()

    def to_tensor(self, dtype: torch.dtype, device) -> torch.Tensor:
        return self.draw(device).to(dtype)

    @property
    def masks(self) -> np.ndarray:
        return self.to_ndarray()

    @property
    def areas(self) -> np.ndarray:
        return self.to_ndarray().sum((1, 2))

    def whole(self) -> BitmapMasks:
        return BitmapMasks(self.to_ndarray(), self.height, self.width)

    # Transforms of which no recipe here makes use: by way of whole bitmaps.

    def expand(self, *args, **kwargs):
        return self.whole().expand(*args, **kwargs)

    def translate(self, *args, **kwargs):
        return self.whole().translate(*args, **kwargs)

    def shear(self, *args, **kwargs):
        return self.whole().shear(*args, **kwargs)

    def rotate(self, *args, **kwargs):
        return self.whole().rotate(*args, **kwargs)

    def get_bboxes(self, dst_type: str = "hbb"):
        return self.whole().get_bboxes(dst_type)

    @classmethod
    def cat(cls, masks):
        return BitmapMasks.cat([each.whole() for each in masks])


def nearest(old: int, new: int) -> np.ndarray:
    """Which of `old` rows OpenCV takes for each of `new` when it resizes to the nearest: asked of OpenCV itself."""
    return cv2.resize(
        np.arange(old, dtype=np.float32)[:, None], (1, new), interpolation=cv2.INTER_NEAREST
    )[:, 0].astype(np.int64)


def window(bitmap: np.ndarray, box: np.ndarray | None = None) -> Window:
    """The part of a bitmap that is not empty, or that in `box` (x, y, width, height)."""
    x, y, width, height = map(
        int, coco.toBbox(coco.encode(np.asfortranarray(bitmap))) if box is None else box
    )
    return y, x, np.ascontiguousarray(bitmap[y : y + height, x : x + width])


@TRANSFORMS.register_module()
class LoadWindowMasks(LoadAnnotations):
    """LoadAnnotations whose masks are `WindowMasks`: the same polygons drawn by the same function."""

    def _load_masks(self, results: dict) -> None:
        height, width = results["ori_shape"]
        windows = []
        for outline in self._process_masks(results):
            rle = outline
            if isinstance(outline, list):
                rle = coco.merge(coco.frPyObjects(outline, height, width))
            elif isinstance(outline["counts"], list):
                rle = coco.frPyObjects(outline, height, width)
            windows.append(window(coco.decode(rle), coco.toBbox(rle)))
        results["gt_masks"] = WindowMasks(windows, (height, width))
