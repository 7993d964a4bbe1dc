"""UperNet for scenes of your own: images, and label PNGs with the number of a class in each pixel; docs/own_data.md.

    python tools/train.py configs/examples/segmentation_own_data.py

Stage-wise decay 0.9 in 6 groups, weight decay, crops and colours are those of ConvNeXt-T on ADE20K (Table 2.4). Rate,
epochs, batch and stochastic depth are a choice for some hundred images, and in no table.
"""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/runtime.py"]

# Your data: folders of images and of labels in data_root, any names; a pair has the same name but for the suffixes.
data_root = "data/scenes"
_suffixes = dict(img_suffix=".jpg", seg_map_suffix=".png")
_train = dict(data_prefix=dict(img_path="images/train", seg_map_path="labels/train"))
_val = dict(data_prefix=dict(img_path="images/val", seg_map_path="labels/val"))
_test = _val  # or dict(data_prefix=...)
# Classes 0, 1, 2... of the labels in this order, or a text file with one name per line; 255 is "not labelled".
classes = ("background", "road", "tree")
reduce_zero_label = False  # True: 0 is "not labelled" too, and the classes count from 1
unlabelled = None  # another number that means "not labelled"
label_values = None  # the numbers of the classes where they are not 0, 1, 2...: (0, 255) for masks of a drawing program

# The network and the weights it begins with: a file in any layout, or a name, such as "convnext_tiny.fb_in1k", that
# timm downloads; see docs/weights.md. None begins with nothing, which needs thousands of images.
_network = "convnext_tiny"
_weights = None

_size = (1024, 512)  # images are scaled to fit: pixels of the longer and of the shorter side
_crop = 384  # pixels of a side of what the network sees; at most the shorter side
_batch = 4  # images in a step, at least 2
_epochs = 40
_rate = 1e-4  # learning rate of the heads for a batch of 4; it follows the batch

model = dict(
    data_preprocessor=dict(size=(_crop, _crop)),
    backbone=dict(_delete_=True, type=_network, out_indices=(0, 1, 2, 3), weights=_weights, drop_path_rate=0.2),
    test_cfg=dict(crop_size=(_crop, _crop), stride=(_crop * 2 // 3, _crop * 2 // 3)),
)
if _network.startswith("convnext_"):
    model["backbone"]["layer_scale_init_value"] = 1.0  # a short training would not raise it from 1e-6
_base_.train_pipeline[2]["scale"] = _base_.test_pipeline[1]["scale"] = _size
_base_.train_pipeline[3]["crop_size"] = (_crop, _crop)
_scales = [(_size[0] * quarters // 4, _size[1] * quarters // 4) for quarters in range(2, 8)]  # of a test with --tta
_base_.tta_pipeline[1]["transforms"][0] = [dict(type="Resize", scale=scale, keep_ratio=True) for scale in _scales]
train_dataloader = dict(sampler=dict(type="DefaultSampler"), drop_last=True, dataset=dict(**_suffixes, **_train))
val_dataloader = dict(dataset=dict(**_suffixes, **_val))
test_dataloader = dict(dataset=_test)

batch = dict(size=_batch, per_gpu=_batch, lr_rule="linear")
optim_wrapper = dict(
    type="AmpOptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.9, decay_type="stage", num_groups=6),
    optimizer=dict(type="AdamW", lr=_rate * _batch / 4, betas=(0.9, 0.999), weight_decay=0.05),
)
train_cfg = dict(type="EpochLoop", max_epochs=_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=100, by_epoch=False),  # warm-up, in steps
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=True, convert_to_iter_based=True),  # down to 0
]
