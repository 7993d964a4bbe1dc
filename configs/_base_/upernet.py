"""UperNet with an FCN auxiliary head; the backbone gives both heads their channels.

One scale is tested by sliding windows, several scales (--tta) on whole images, as in the configs that ConvNeXt released
for the two numbers of Table 2.4. By windows at several scales too: --cfg-options tta_model.module.test_cfg.mode=slide.
"""

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(type="convnext_tiny", out_indices=(0, 1, 2, 3), layer_scale_init_value=1.0),
    decode_head=dict(
        type="FastUPerHead",
        in_channels="from_backbone",
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes="from_classes",
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels="from_backbone[2]",
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes="from_classes",
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
tta_model = dict(type="SegTTAModel", module=dict(test_cfg=dict(mode="whole")))
