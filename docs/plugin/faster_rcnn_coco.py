"""Faster R-CNN on COCO-style data of your own, with Seesaw loss, PCB and the iterative paradigm.

Edit `data_root`, `classes` and the files.
"""

_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
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
        type="IterativeRoIHead",
        num_steps=3,
        step_weights=(0.2, 0.2, 0.6),
        identity_start=True,
        bbox_head=dict(
            num_classes=num_classes,
            cls_predictor_cfg=dict(type="NormedLinear"),  # Seesaw's own
            loss_cls=dict(
                _delete_=True,
                type="PCBSeesawLoss",
                num_classes=num_classes,
                alpha=0.05,
                momentum=0.99,
                num_steps=3,
                start_epoch=9,  # of 12: when the learning rate drops
            ),
        ),
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
