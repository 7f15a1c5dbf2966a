"""The midi scale's Mask R-CNN: the LVIS detector at 0.4 of the image sizes of LVIS.

Scenes of 256 pixels are shown at 256 to 320 pixels.
"""

_base_ = "lvis_r50.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadWindowMasks", with_bbox=True, with_mask=True),
    dict(
        type="RandomChoiceResize",
        scales=[(533, side) for side in (256, 269, 282, 294, 307, 320)],
        keep_ratio=True,
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(533, 320), keep_ratio=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
