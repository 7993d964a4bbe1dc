"""ViT-Huge with patches of 16 x 16 on images of 512 x 512, in float16: settings of "ViT-Huge/16 at 512".

Its "RandAugment with 9 operations and a magnitude of 0.5" is read as the (9, 0.5) of Table 2.5, magnitude and spread.
Not printed: the strength of the colour jitter, here timm's 0.4, and the weight decay, here the ViT paper's 0.1 for this
network.
"""

model = dict(type="ImageClassifier", num_classes="from_classes", backbone=dict(type="vit_huge"))
train_pipeline = [
    dict(
        type="ClassificationTransform",
        size=512,
        training=True,
        rand_augment="rand-m9-mstd0.5-inc1",
        color_jitter=0.4,
    )
]
test_pipeline = [dict(type="ClassificationTransform", size=512, crop_ratio=1.0)]

optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    constructor="LayerDecayConstructor",
    clip_grad=dict(max_norm=1.0),
    optimizer=dict(type="AdamW", betas=(0.9, 0.999), weight_decay=0.1),
)
custom_hooks = [dict(type="ProgressBar")]
