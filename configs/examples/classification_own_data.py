"""A classifier for photographs of your own, in a folder for each class; docs/own_data.md goes through it step by step.

    python tools/train.py configs/examples/classification_own_data.py

Layer-wise decay 0.8, erasing, label smoothing, RandAugment and the head that begins near 0 are those of Table 2.6
(fine-tuning); mixup and cutmix are left out, which need longer trainings. Rate, epochs, batch, stochastic depth and the
crops, larger than ImageNet's, are a choice for some hundred images, and in no table.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/finetune_30e.py",
    "../_base_/runtime.py",
]

# Your data. Images lie in <data_root>/<split>/<class>/, at any depth; the folders may have any names.
data_root = "data/photographs"
_train = dict(split="train")
_val = dict(split="val")
_test = _val  # or a folder of its own: dict(split="test")
classes = ("ant", "bee")  # the names of the folders; "from_data" takes them from there, sorted

# The network and the weights it begins with: a file in any layout, or a name, such as "convnext_tiny.fb_in1k", that
# timm downloads; see docs/weights.md. None begins with nothing, which needs many images and more epochs.
_network = "convnext_tiny"
_weights = None

_size = 224  # pixels of a side of what the network sees; a multiple of 32
_batch = 32  # images in a step
_epochs = 30
_rate = 2e-4 if _weights else 1e-3  # learning rate of the head for a batch of 32; it follows the batch

model = dict(backbone=dict(type=_network, weights=_weights, drop_path_rate=0.1))
if _network.startswith("convnext_"):
    model["backbone"]["layer_scale_init_value"] = 1.0  # a short training would not raise it from 1e-6
train_pipeline = [
    dict(
        type="ClassificationTransform",
        size=_size,
        training=True,
        rand_augment="rand-m9-mstd0.5-inc1",
        scale=(0.3, 1.0),  # share of the image in a random crop
        flip=0.5,  # 0.0 where left and right differ, as in writing
    )
]
test_pipeline = [dict(type="ClassificationTransform", size=_size, crop_ratio=0.875)]
train_dataloader = dict(dataset=_train)
val_dataloader = dict(dataset=_val)
test_dataloader = dict(dataset=_test)

batch = dict(size=_batch, per_gpu=_batch, lr_rule="linear")
optim_wrapper = dict(optimizer=dict(lr=_rate * _batch / 32, weight_decay=0.05))
train_cfg = dict(max_epochs=_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=50, by_epoch=False),  # warm-up, in steps
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True, convert_to_iter_based=True),  # down to 0
]
