"""Mask2Former's optimizer: AdamW at 1e-4 for batch 16, weight decay 0.05, gradients clipped to a norm of 0.01.

The experiment states length, cuts and the rates of the backbone's layers. Embeddings are not decayed, as released.
Precision is float32, as in mmdet's and mmseg's configs.
"""

batch = dict(size=16, per_gpu=2, lr_rule="linear")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(
        custom_keys=dict(
            query_embed=dict(decay_mult=0.0),
            query_feat=dict(decay_mult=0.0),
            level_embed=dict(decay_mult=0.0),
            level_encoding=dict(decay_mult=0.0),
        )
    ),
    clip_grad=dict(max_norm=0.01),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
