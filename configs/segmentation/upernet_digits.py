"""UperNet on the embedded digits, from the digits classifier: a step of tools/demo.sh.

    python tools/train.py configs/segmentation/upernet_digits.py \
        --cfg-options model.backbone.weights=work_dirs/digits/epoch_5.pth

400 steps. The trained backbone's rates fall faster with the depth than in the real recipes: the head, which begins from
nothing, has no time for a lower one.
"""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/runtime.py"]

classes = (
    "background", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
data_root = "data/digits/ade"
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(type="convnext_atto", drop_path_rate=0.05, init_std=0.06),
    # Digits cover a tenth of the pixels: at equal weights a short training answers "background" everywhere.
    decode_head=dict(channels=96, loss_decode=dict(class_weight=dict(background=0.1))),
    auxiliary_head=dict(channels=64, loss_decode=dict(class_weight=dict(background=0.1))),
    test_cfg=dict(_delete_=True, mode="whole"),
)
train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadLabels", num_classes="from_classes"),
    dict(type="RandomCrop", crop_size=(128, 128)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadLabels", num_classes="from_classes"),
    dict(type="PackSegInputs"),
]
# Tested at the size they have, at several scales around it.
_base_.tta_pipeline[1].transforms[0] = [
    dict(type="Resize", scale_factor=ratio, keep_ratio=True) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
]
train_dataloader = dict(num_workers=1)
val_dataloader = dict(num_workers=1)

batch = dict(size=4, per_gpu=4, lr_rule="linear")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.6, decay_type="stage", num_groups=6),
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
)

train_cfg = dict(type="IterationLoop", max_iters=400, val_interval=200)
val_cfg = dict(loss_images=30)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=27, by_epoch=False),
    dict(type="PolyDecayLR", power=1.0, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=200))
