"""Mask R-CNN on LVIS v1 with PCB in the iterative paradigm: the paper's recipe.

Softmax, repeat factor sampling, 24 epochs, R50. Edit `data_root`, the annotation files and, for
data of your own in LVIS format, `num_classes` and `metainfo`. Train with MMDetection's own
tools/train.py or tools/dist_train.sh; their `--amp` is mixed precision, in which the paper's code
trains.
"""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/lvis_v1_instance.py",
    "mmdet::_base_/schedules/schedule_2x.py",
    "mmdet::_base_/default_runtime.py",
]
custom_imports = dict(imports=["pcb.mmdet"], allow_failed_imports=False)

# Yours: the location of the data, and its number of classes.
data_root = "data/lvis_v1/"
# The names of LVIS's images begin with train2017/ or val2017/, so their folders are empty.
train_file, train_images = "annotations/lvis_v1_train.json", ""
val_file, val_images = "annotations/lvis_v1_val.json", ""
num_classes = 1203
# LVIS v1 has its class names in MMDetection. For your own, in the order of the JSON file:
# dict(classes=("cat", "owl", ...)).
metainfo = dict()

model = dict(
    roi_head=dict(
        type="IterativeRoIHead",
        num_steps=3,
        step_weights=(0.2, 0.2, 0.6),
        identity_start=False,  # True where the schedule is short or starts from a trained detector
        bbox_head=dict(
            num_classes=num_classes,
            loss_cls=dict(
                _delete_=True,
                type="PCBCrossEntropyLoss",
                num_classes=num_classes,
                alpha=0.4,
                momentum=0.99,
                num_steps=3,
                start_epoch=17,  # "after the 16th epoch" of 24: when the learning rate drops
                absent=(),  # 0-based classes without any training sample
            ),
        ),
        mask_head=dict(num_classes=num_classes),
    ),
    test_cfg=dict(rcnn=dict(score_thr=1e-4, max_per_img=300)),
)
custom_hooks = [dict(type="PCBEpochHook"), dict(type="NumClassCheckHook")]

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file=train_file,
            data_prefix=dict(img=train_images),
            metainfo=metainfo,
        )
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file=val_file, data_prefix=dict(img=val_images), metainfo=metainfo
    )
)
test_dataloader = val_dataloader
# AP of boxes and masks. MMDetection's own LVISMetric fails with numpy 1.24 or newer.
val_evaluator = dict(type="PCBLVISMetric", ann_file=data_root + val_file)
test_evaluator = val_evaluator
train_cfg = dict(val_interval=24)
