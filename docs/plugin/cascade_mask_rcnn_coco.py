"""Cascade Mask R-CNN on COCO-style data of your own, with PCB in each of its three stages.

A stage has its own classifier, boxes and IoU threshold, so it has its own confusion matrix too. No
stage feeds another's classifier: each loss is PCB without a paradigm (`num_steps=1`), which acts
with the full alpha. Edit `data_root`, `classes` and the files. Without masks, take
cascade-rcnn_r50_fpn.py and coco_detection.py as bases.
"""

_base_ = [
    "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]
custom_imports = dict(imports=["pcb.mmdet"], allow_failed_imports=False)

# Yours: the location of the data, and its classes in the order of `categories` in the JSON files.
data_root = "data/birds/"
train_file, train_images = "annotations/train.json", "train/"
val_file, val_images = "annotations/val.json", "val/"
classes = ("dove", "owl", "wren")
num_classes = len(classes)
metainfo = dict(classes=classes)

model = dict(
    roi_head=dict(
        bbox_head=[
            dict(
                type="Shared2FCBBoxHead",
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=num_classes,
                bbox_coder=dict(
                    type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=stds
                ),
                reg_class_agnostic=True,
                loss_cls=dict(
                    type="PCBCrossEntropyLoss",
                    num_classes=num_classes,
                    alpha=0.2,
                    momentum=0.99,
                    num_steps=1,
                    start_epoch=9,  # of 12: when the learning rate drops
                ),
                loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
            )
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ],
        mask_head=dict(num_classes=num_classes),
    ),
    test_cfg=dict(rcnn=dict(score_thr=1e-3, max_per_img=300)),
)
custom_hooks = [dict(type="PCBEpochHook"), dict(type="NumClassCheckHook")]

train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file=train_file,
        data_prefix=dict(img=train_images),
        metainfo=metainfo,
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file=val_file, data_prefix=dict(img=val_images), metainfo=metainfo
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + val_file)
test_evaluator = val_evaluator
