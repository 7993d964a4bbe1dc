"""ADE20K in its customary place: 512 x 512 crops, testing at 2048 x 512 or at six scales."""

custom_imports = dict(imports=["segmentation"], allow_failed_imports=False)
default_scope = "mmseg"
visualizer = dict(
    type="SegmentationVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
custom_hooks = [dict(type="ProgressBar")]

classes = "ade20k"
data_root = "data/ade/ADEChallengeData2016"
reduce_zero_label = True  # stored 0 is "not labelled", class i is stored as i + 1
train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadLabels", num_classes="from_classes"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
# Mask2Former's resize, in place of that above: the shorter side is one of 0.5 to 2 times a crop.
_shortest_edge = dict(
    type="RandomChoiceResize",
    scales=[int(51.2 * tenths) for tenths in range(5, 21)],
    resize_type="ResizeShortestEdge",
    max_size=2048,
)
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadLabels", num_classes="from_classes"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(
        type="TestTimeAug",
        transforms=[
            # 0.5 to 1.75 of the size that one-scale testing has, not of the original image.
            [dict(type="Resize", scale=(4 * side, side), keep_ratio=True) for side in range(256, 897, 128)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadLabels", num_classes="from_classes")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(
    num_workers=4,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="LabelPngDataset",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="LabelPngDataset",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
    ),
)
val_evaluator = dict(type="ClassIoUMetric", iou_metrics=["mIoU"])
val_cfg = dict(type="ValidationLoop")
