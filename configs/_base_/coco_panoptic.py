"""COCO 2017's panoptic segments in their customary place with large-scale jitter at 1024, tested at 1333 x 800.

Things come first in ``classes``; the last ones, ``stuff_classes``, are stuff. The score is the panoptic quality.
"""

custom_imports = dict(imports=["detection"], allow_failed_imports=False)
default_scope = "mmdet"
task = "panoptic"
visualizer = dict(
    type="DetectionVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
custom_hooks = [dict(type="ProgressBar")]

classes = "coco-panoptic"
stuff_classes = "coco-stuff"
data_root = "data/coco"
train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadPanoptic"),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomResize",
        scale=(1024, 1024),
        ratio_range=(0.1, 2.0),
        resize_type="CheckedResize",
        keep_ratio=True,
    ),
    dict(
        type="RandomCrop",
        crop_type="absolute",
        crop_size=(1024, 1024),
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="CheckedResize", scale=(1333, 800), keep_ratio=True),
    dict(type="LoadPanoptic"),
    dict(
        type="PackDetInputs",
        meta_keys=(
            *("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            *("seg_map_path", "segments_info"),  # the truth of the metric
        ),
    ),
]
train_dataloader = dict(
    num_workers=4,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="CocoPanoptic",
        ann_file="annotations/panoptic_train2017.json",
        data_prefix=dict(img="train2017/", seg="annotations/panoptic_train2017/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoPanoptic",
        ann_file="annotations/panoptic_val2017.json",
        data_prefix=dict(img="val2017/", seg="annotations/panoptic_val2017/"),
        test_mode=True,
    ),
)
val_evaluator = dict(type="PanopticQuality")
val_cfg = dict(type="ValidationLoop")
