"""The mini scale's Mask R-CNN: a half-width ResNet-18 on 96x96 scenes.

lvis_r50.py with everything made small, so that an epoch takes seconds on one core. Backbone, FPN
and RPN stay as they were pretrained, and their output is cached.
"""

_base_ = "lvis_r50.py"

custom_imports = dict(imports=["pcb.synthetic.frozen_backbone"], allow_failed_imports=False)
custom_hooks = [dict(type="SaveFeatureCacheHook")]
feature_cache = True  # pcb.training.build passes its arguments to the model

model = dict(
    type="FrozenBackboneMaskRCNN",
    backbone=dict(depth=18, base_channels=32, frozen_stages=4),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=48, num_outs=4),
    rpn_head=dict(
        in_channels=48,
        feat_channels=48,
        anchor_generator=dict(scales=[4], ratios=[1.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1), out_channels=48, featmap_strides=[4]
        ),
        bbox_head=dict(in_channels=48, fc_out_channels=128),
        mask_roi_extractor=dict(
            roi_layer=dict(output_size=7, sampling_ratio=1), out_channels=48, featmap_strides=[4]
        ),
        mask_head=dict(num_convs=2, in_channels=48, conv_out_channels=32),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=48),
        rcnn=dict(sampler=dict(num=24), mask_size=14),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=48),
        rcnn=dict(score_thr=1e-3, max_per_img=50),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
