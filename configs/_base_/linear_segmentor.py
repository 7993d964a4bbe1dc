"""A linear probe of the last map: a frozen backbone, and a batch norm and a 1 x 1 convolution that learn.

DINOv3's linear segmentation. With all maps: model.backbone.out_indices=(0,1,2,3) and of the decode head
in_channels="from_backbone", in_index=(0,1,2,3), input_transform="resize_concat".
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
    backbone=dict(type="convnext_tiny", out_indices=(3,), frozen_stages=4, layer_scale_init_value=1.0),
    decode_head=dict(
        type="LinearProbeHead",
        in_channels="from_backbone[0]",
        in_index=0,
        dropout_ratio=0.1,
        num_classes="from_classes",
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
tta_model = dict(type="SegTTAModel", module=dict(test_cfg=dict(mode="whole")))
