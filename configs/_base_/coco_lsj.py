"""COCO 2017 in its customary place with large-scale jitter: scaled by 0.1 to 2 of 1024, cropped, tested at 1333 x 800.

What is smaller than 1024 x 1024 is padded on the device: the experiment states it (``BatchFixedSizePad``). The pipeline
is mmdet's (configs/common/lsj-100e_coco-instance.py). A crop without an object is kept; an image of which no object has
an area after it is replaced by another.
"""

custom_imports = dict(imports=["detection"], allow_failed_imports=False)
default_scope = "mmdet"
visualizer = dict(
    type="DetectionVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
custom_hooks = [dict(type="ProgressBar")]

classes = "coco"
data_root = "data/coco"
train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask="from_model"),
    dict(
        type="RandomResize",
        scale=(1024, 1024),
        ratio_range=(0.1, 2.0),
        resize_type="CheckedResize",
        keep_ratio=True,
    ),
    dict(
        type="RandomCrop",
        crop_type="absolute_range",
        crop_size=(1024, 1024),
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="CheckedResize", scale=(1333, 800), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask="from_model"),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CocoInstances",
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoInstances",
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
    ),
)
val_evaluator = dict(type="FastCocoMetric", ann_file="set from the data loader")
val_cfg = dict(type="ValidationLoop")
