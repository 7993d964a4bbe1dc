"""Masked pre-training of ConvNeXt V2 (FCMAE): model, images and optimizer, as in the paper's Table 8."""

custom_imports = dict(imports=["classification.pretraining"], allow_failed_imports=False)
default_scope = "mmengine"
visualizer = dict(
    type="ReconstructionVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
classes = ("image",)  # of no meaning: nothing is classified
data_root = "data/imagenet"
model = dict(
    type="MaskedAutoencoder",
    mask_ratio=0.6,
    decoder_dim=512,
    decoder_depth=1,
    data_preprocessor=dict(
        type="ImgDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
)
train_pipeline = [dict(type="MaskedImageTransform", size=224, training=True, scale=(0.2, 1.0))]
test_pipeline = [dict(type="MaskedImageTransform", size=224)]

train_dataloader = dict(
    num_workers=10,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="UnlabelledImages", split="train"),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=10,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="UnlabelledImages", split="val", test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ReconstructionLoss")
test_evaluator = val_evaluator
val_cfg = dict(type="ValidationLoop")
test_cfg = dict()

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    # Only vectors and biases go without decay in the released pre-training (main_pretrain.py, line 178).
    paramwise_cfg=dict(custom_keys=dict(grn=dict(decay_mult=1.0))),
    optimizer=dict(type="AdamW", lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05),
)
custom_hooks = [dict(type="ProgressBar"), dict(type="ValidationPicturesHook")]
