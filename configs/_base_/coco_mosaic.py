"""COCO 2017 in its customary place with RTMDet's mosaics and mixtures at 640 x 640, tested at 640 x 640.

Images wait in a cache of each loading process for the mosaics of later ones: what an image is mixed with depends on the
number of these processes, and a run that is resumed begins with empty caches.
"""

custom_imports = dict(imports=["detection"], allow_failed_imports=False)
default_scope = "mmdet"
visualizer = dict(
    type="DetectionVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)

classes = "coco"
data_root = "data/coco"
train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="CachedMosaic", img_scale=(640, 640), pad_val=114.0),
    dict(type="RandomResize", scale=(1280, 1280), ratio_range=(0.1, 2.0), resize_type="CheckedResize", keep_ratio=True),
    dict(type="RandomCrop", crop_size=(640, 640)),
    dict(type="YOLOXHSVRandomAug"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Pad", size=(640, 640), pad_val=dict(img=(114, 114, 114))),
    dict(type="CachedMixUp", img_scale=(640, 640), ratio_range=(1.0, 1.0), max_cached_images=20, pad_val=(114,) * 3),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="CheckedResize", scale=(640, 640), keep_ratio=True),
    dict(type="Pad", size=(640, 640), pad_val=dict(img=(114, 114, 114))),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    num_workers=10,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CocoInstances",
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    ),
)
val_dataloader = dict(
    batch_size=5,
    num_workers=10,
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
custom_hooks = [
    dict(type="ProgressBar"),
    # mmdet's average begins faster: its momentum falls to 0.0002 over the first thousands of steps.
    dict(type="ModelEMAHook", decay=0.9998),
    # The last 10 of 100 epochs are without mosaics and mixtures.
    dict(
        type="LastEpochsPipelineHook",
        epochs=10,
        pipeline=[
            dict(type="LoadCheckedImage"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(
                type="RandomResize",
                scale=(640, 640),
                ratio_range=(0.1, 2.0),
                resize_type="CheckedResize",
                keep_ratio=True,
            ),
            dict(type="RandomCrop", crop_size=(640, 640)),
            dict(type="YOLOXHSVRandomAug"),
            dict(type="RandomFlip", prob=0.5),
            dict(type="Pad", size=(640, 640), pad_val=dict(img=(114, 114, 114))),
            dict(type="PackDetInputs"),
        ],
    ),
]
