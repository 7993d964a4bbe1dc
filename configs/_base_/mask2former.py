"""Mask2Former for instances and, with stuff classes, panoptic segmentation; the backbone tells the head its channels.

Six layers of multi-scale deformable attention over the maps of strides 8 to 32, nine decoder layers with masked
attention and 100 queries, as in facebookresearch/Mask2Former and mmdet's configs/mask2former.
"""

model = dict(
    type="Mask2Former",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
    ),
    backbone=dict(type="convnext_tiny", out_indices=(0, 1, 2, 3), layer_scale_init_value=1.0),
    panoptic_head=dict(
        type="Mask2FormerHead",
        in_channels="from_backbone",
        strides=[4, 8, 16, 32],
        feat_channels=256,
        out_channels=256,
        num_things_classes="from_classes",
        num_stuff_classes="from_classes",
        num_queries=100,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type="MSDeformAttnPixelDecoder",
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=256, num_levels=3, dropout=0.0),
                    ffn_cfg=dict(embed_dims=256, feedforward_channels=1024),
                ),
            ),
        ),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=9,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=256, num_heads=8),
                cross_attn_cfg=dict(embed_dims=256, num_heads=8),
                ffn_cfg=dict(embed_dims=256, feedforward_channels=2048),
            ),
        ),
        loss_cls=dict(type="CrossEntropyLoss", loss_weight=2.0, class_weight={"no object": 0.1}),
    ),
    panoptic_fusion_head=dict(
        type="MaskFormerFusionHead", num_things_classes="from_classes", num_stuff_classes="from_classes"
    ),
    train_cfg=dict(
        num_points=12544,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        assigner=dict(
            type="HungarianAssigner",
            match_costs=[
                dict(type="ClassificationCost", weight=2.0),
                dict(type="CrossEntropyLossCost", weight=5.0),
                dict(type="DiceCost", weight=5.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type="MaskPseudoSampler"),
    ),
    test_cfg=dict(
        panoptic_on="from_classes",  # with stuff
        instance_on=True,
        max_per_image=100,
        iou_thr=0.8,
        filter_low_score=True,
    ),
)
