"""Ground-truth masks as windows: the pixels of `BitmapMasks` without full-size bitmaps.

Stock MMDetection draws each mask at full image size, resizes, flips and pads it, and sends it from
the worker to the training process: 14 MB and four fifths of a worker's time for an image with 13
objects at 1333x800. A `WindowMasks` stores what is inside each object's box at the file's
resolution. Resizing (nearest), flipping and padding only select rows and columns, the same for all
masks of an image, so they change two index arrays. Pixels are drawn where mask targets are
computed: on the GPU, if there is one.

In a pipeline, `LoadWindowMasks` replaces `LoadAnnotations`. MMDetection's `BitmapMasks` is the
oracle of the tests.
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

    Args:
        windows: The non-empty part of each mask, in the image as it was loaded.
        source: (height, width) of the image as it was loaded.
        rows: (height,) int: the source row of each row; -1: none, outside the image. Default: all.
        columns: (width,) int: the source column of each column, likewise.
    """

    def __init__(
        self,
        windows: list[Window],
        source: tuple[int, int],
        rows: np.ndarray | None = None,
        columns: np.ndarray | None = None,
    ):
        self.windows, self.source = windows, source
        self.rows = np.arange(source[0]) if rows is None else rows
        self.columns = np.arange(source[1]) if columns is None else columns

    @classmethod
    def from_bitmaps(cls, bitmaps: list[np.ndarray], source: tuple[int, int]) -> WindowMasks:
        """Make them from full bitmaps, (height, width) uint8 each."""
        return cls([crop_window(bitmap) for bitmap in bitmaps], source)

    @property
    def height(self) -> int:
        """Height of the image, in pixels."""
        return len(self.rows)

    @property
    def width(self) -> int:
        """Width of the image, in pixels."""
        return len(self.columns)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index) -> WindowMasks:
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return WindowMasks([self.windows[i] for i in chosen], self.source, self.rows, self.columns)

    def select(self, rows: np.ndarray, columns: np.ndarray) -> WindowMasks:
        """Return masks whose row i is row `rows[i]` of these, likewise columns; -1 is empty.

        Args:
            rows: (new height,) int.
            columns: (new width,) int.
        """
        return WindowMasks(
            self.windows,
            self.source,
            np.where(rows < 0, -1, self.rows[rows]),
            np.where(columns < 0, -1, self.columns[columns]),
        )

    # What MMDetection's pipeline and preprocessor use. Signatures are those of BaseInstanceMasks.

    def rescale(self, scale, interpolation: str = "nearest") -> WindowMasks:
        """Resize to fit into `scale`, with the aspect ratio kept."""
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width), interpolation)

    def resize(self, out_shape: tuple[int, int], interpolation: str = "nearest") -> WindowMasks:
        """Resize to (height, width)."""
        assert interpolation == "nearest", "a mask has no values between 0 and 1"
        height, width = out_shape
        return self.select(nearest_indices(self.height, height), nearest_indices(self.width, width))

    def flip(self, flip_direction: str = "horizontal") -> WindowMasks:
        """Flip 'horizontal', 'vertical' or 'diagonal' (both)."""
        rows, columns = np.arange(self.height), np.arange(self.width)
        return self.select(
            rows[::-1] if flip_direction in ("vertical", "diagonal") else rows,
            columns[::-1] if flip_direction in ("horizontal", "diagonal") else columns,
        )

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> WindowMasks:
        """Pad below and to the right to (height, width)."""
        assert pad_val == 0, "outside the image there is no object"
        rows, columns = (np.arange(size) for size in out_shape)
        return self.select(
            np.where(rows < self.height, rows, -1), np.where(columns < self.width, columns, -1)
        )

    def crop(self, bbox: np.ndarray) -> WindowMasks:
        """Crop to (4,) left, top, right, bottom in pixels."""
        left, top, right, bottom = np.clip(bbox, 0, [self.width, self.height] * 2).astype(int)
        return self.select(
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
        """Return mask targets of k boxes by RoIAlign, as `BitmapMasks` does.

        There each box gets a copy of its full mask; here boxes of one object share it.

        Args:
            bboxes: (k, 4) corners in pixels.
            out_shape: (height, width) of a target.
            inds: (k,) int: the mask of each box.
            device: Where the targets are computed.
            interpolation: Ignored, as in `BitmapMasks`.
            binarize: Round the targets to 0 or 1.

        Returns:
            k targets of `out_shape`: 0 or 1, or without `binarize` floats between.
        """
        if not len(self):
            return BitmapMasks(np.empty((0, *out_shape), np.uint8), *out_shape)
        boxes = torch.as_tensor(bboxes).to(device)
        used, indices = np.unique(torch.as_tensor(inds).cpu().numpy(), return_inverse=True)
        indices = torch.from_numpy(indices).to(device, boxes.dtype)
        targets = boxes.new_zeros((0, *out_shape))
        if len(boxes):
            pixels = self[used].draw(device).to(boxes.dtype)[:, None]
            rois = torch.cat([indices[:, None], boxes], 1)
            targets = roi_align(pixels, rois, out_shape, 1.0, 0, "avg", True).squeeze(1)
        return BitmapMasks((targets >= 0.5 if binarize else targets).cpu().numpy(), *out_shape)

    def draw(self, device="cpu") -> torch.Tensor:
        """Return (n, height, width) uint8 on `device`. Only the windows are copied there."""
        height, width = self.source
        # The last row and column stay empty: index -1 reads them.
        full = torch.zeros((len(self), height + 1, width + 1), dtype=torch.uint8, device=device)
        sizes = [pixels.size for *_, pixels in self.windows]
        flat = np.concatenate(
            [np.zeros(0, np.uint8), *(pixels.ravel() for *_, pixels in self.windows)]
        )
        values = torch.from_numpy(flat).to(device).split(sizes)
        for mask, (top, left, pixels), flat_pixels in zip(full, self.windows, values, strict=True):
            h, w = pixels.shape
            mask[top : top + h, left : left + w] = flat_pixels.view(h, w)
        rows = torch.from_numpy(self.rows % (height + 1)).to(device)
        columns = torch.from_numpy(self.columns % (width + 1)).to(device)
        return full[:, rows][:, :, columns]

    def to_ndarray(self) -> np.ndarray:
        """Return (n, height, width) uint8."""
        return self.draw().numpy()

    def to_tensor(self, dtype: torch.dtype, device) -> torch.Tensor:
        """Return (n, height, width) of `dtype` on `device`."""
        return self.draw(device).to(dtype)

    @property
    def masks(self) -> np.ndarray:
        """(n, height, width) uint8."""
        return self.to_ndarray()

    @property
    def areas(self) -> np.ndarray:
        """(n,) int, in pixels."""
        return self.to_ndarray().sum((1, 2))

    def to_bitmaps(self) -> BitmapMasks:
        """Return MMDetection's full bitmaps."""
        return BitmapMasks(self.to_ndarray(), self.height, self.width)

    # Abstract methods that no recipe here uses. They convert to full bitmaps.

    def expand(self, *args, **kwargs):
        """As in `BitmapMasks`."""
        return self.to_bitmaps().expand(*args, **kwargs)

    def translate(self, *args, **kwargs):
        """As in `BitmapMasks`."""
        return self.to_bitmaps().translate(*args, **kwargs)

    def shear(self, *args, **kwargs):
        """As in `BitmapMasks`."""
        return self.to_bitmaps().shear(*args, **kwargs)

    def rotate(self, *args, **kwargs):
        """As in `BitmapMasks`."""
        return self.to_bitmaps().rotate(*args, **kwargs)

    def get_bboxes(self, dst_type: str = "hbb"):
        """As in `BitmapMasks`."""
        return self.to_bitmaps().get_bboxes(dst_type)

    @classmethod
    def cat(cls, masks):
        """As in `BitmapMasks`."""
        return BitmapMasks.cat([mask.to_bitmaps() for mask in masks])


def nearest_indices(old: int, new: int) -> np.ndarray:
    """Return (new,) int64: which of `old` rows OpenCV's nearest-neighbour resize takes for each."""
    rows = np.arange(old, dtype=np.float32)[:, None]
    resized = cv2.resize(rows, (1, new), interpolation=cv2.INTER_NEAREST)
    return resized[:, 0].astype(np.int64)


def crop_window(bitmap: np.ndarray, box: np.ndarray | None = None) -> Window:
    """Return the part of a bitmap in `box` (x, y, width, height); default: its non-empty part."""
    if box is None:
        box = coco.toBbox(coco.encode(np.asfortranarray(bitmap)))
    x, y, width, height = map(int, box)
    return y, x, np.ascontiguousarray(bitmap[y : y + height, x : x + width])


@TRANSFORMS.register_module()
class LoadWindowMasks(LoadAnnotations):
    """`LoadAnnotations` whose masks are `WindowMasks`, drawn by the same function of COCO."""

    def _load_masks(self, results: dict) -> None:
        height, width = results["ori_shape"]
        windows = []
        for segmentation in self._process_masks(results):
            rle = segmentation
            if isinstance(segmentation, list):
                rle = coco.merge(coco.frPyObjects(segmentation, height, width))
            elif isinstance(segmentation["counts"], list):
                rle = coco.frPyObjects(segmentation, height, width)
            windows.append(crop_window(coco.decode(rle), coco.toBbox(rle)))
        results["gt_masks"] = WindowMasks(windows, (height, width))
