"""Mask R-CNN, or a box detector, for objects of your own, annotated in COCO's format; see docs/own_data.md.

    python tools/train.py configs/examples/detection_own_data.py

Layer-wise decay 0.95, weight decay and Mask R-CNN itself are those of ConvNeXt-T on COCO (Table 2.3). Rate, epochs,
batch, stochastic depth and the range of sizes are a choice for some hundred images, and in no table.
"""

_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_instance.py", "../_base_/runtime.py"]

# Your data: an annotation file and the folder of its images for each split, in data_root; any names.
data_root = "data/objects"
_train = dict(ann_file="annotations/train.json", data_prefix=dict(img="images/train"))
_val = dict(ann_file="annotations/val.json", data_prefix=dict(img="images/val"))
_test = _val  # or dict(ann_file=..., data_prefix=dict(img=...))
classes = ("cat", "dog")  # names of categories; "from_data" takes all of the training file
_masks = True  # False: boxes alone, for data without "segmentation"

# The network and the weights it begins with: a file in any layout, or a name, such as "convnext_tiny.fb_in1k", that
# timm downloads; see docs/weights.md. None begins with nothing, which needs thousands of images.
_network = "convnext_tiny"
_weights = None

_size = (1024, 640)  # images are scaled to fit: pixels of the longer and of the shorter side
_batch = 4  # images in a step
_epochs = 24
_rate = 1e-4  # learning rate of the heads for a batch of 4; it follows the batch

model = dict(
    backbone=dict(_delete_=True, type=_network, out_indices=(0, 1, 2, 3), weights=_weights, drop_path_rate=0.2),
    roi_head=dict() if _masks else dict(mask_head=None, mask_roi_extractor=None),
)
if _network.startswith("convnext_"):
    model["backbone"]["layer_scale_init_value"] = 1.0  # a short training would not raise it from 1e-6
_resize = dict(type="RandomChoiceResize", resize_type="CheckedResize", keep_ratio=True)
_resize["scales"] = [(_size[0] * tenths // 10, _size[1] * tenths // 10) for tenths in (7, 8, 9, 10, 11, 12)]
train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask="from_model"),
    dict(type="RandomFlip", prob=0.5),  # 0.0 where left and right differ, as in writing
    _resize,
    dict(type="PackDetInputs"),
]
_base_.test_pipeline[1]["scale"] = _size
train_dataloader = dict(dataset=_train)
val_dataloader = dict(dataset=_val)
test_dataloader = dict(dataset=_test)

batch = dict(size=_batch, per_gpu=_batch, lr_rule="linear")
optim_wrapper = dict(
    type="AmpOptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.95, decay_type="layer"),
    optimizer=dict(type="AdamW", lr=_rate * _batch / 4, betas=(0.9, 0.999), weight_decay=0.05),
)
train_cfg = dict(type="EpochLoop", max_epochs=_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=100, by_epoch=False),  # warm-up, in steps
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True, convert_to_iter_based=True),  # down to 0
]
