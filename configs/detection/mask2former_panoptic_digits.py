"""Mask2Former on the embedded digits, panoptic: digits are things, the photograph around them is stuff.

    python tools/train.py configs/detection/mask2former_panoptic_digits.py \
        --cfg-options model.backbone.weights=work_dirs/digits/epoch_5.pth

A small head, three decoder layers of 64 channels and 20 queries, trained for 10 epochs.
"""

_base_ = [
    "../_base_/mask2former.py",
    "../_base_/coco_panoptic.py",
    "../_base_/schedule_digits.py",
    "../_base_/runtime.py",
]

classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "background")
stuff_classes = ("background",)
data_root = "data/digits/coco"
_width = dict(embed_dims=64)
model = dict(
    data_preprocessor=dict(pad_seg=True, seg_pad_value=255),
    backbone=dict(type="convnext_atto", drop_path_rate=0.05, init_std=0.06),
    panoptic_head=dict(
        feat_channels=64,
        out_channels=64,
        num_queries=20,
        pixel_decoder=dict(
            norm_cfg=dict(type="GN", num_groups=8),
            positional_encoding=dict(num_feats=32, normalize=True),
            encoder=dict(
                num_layers=2, layer_cfg=dict(self_attn_cfg=_width, ffn_cfg=dict(_width, feedforward_channels=128))
            ),
        ),
        positional_encoding=dict(num_feats=32, normalize=True),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=_width, cross_attn_cfg=_width, ffn_cfg=dict(_width, feedforward_channels=128)),
        ),
    ),
    train_cfg=dict(num_points=2048),
    test_cfg=dict(instance_on=False),
)
train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadPanoptic"),
    dict(type="CheckedResize", scale=(160, 160), keep_ratio=True),
    dict(type="PackDetInputs"),
]
_base_.test_pipeline[1].scale = (160, 160)
train_dataloader = dict(num_workers=1, sampler=dict(type="DefaultSampler", shuffle=True))
val_dataloader = dict(num_workers=1)

optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
train_cfg = dict(max_epochs=10, val_interval=5)
