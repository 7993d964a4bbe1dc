"""Fine-tuning on ImageNet-22K after ConvNeXt V2's masked autoencoder: what Table 12 has besides in22k_90e.py.

The experiment states the network and its stochastic depth, and another layer-wise decay where it has one.
"""

_base_ = ["imagenet_training.py"]

model = dict(head_init_scale=0.001)
# 2.5e-4 for 256 images, in float16 as the released fine-tuning.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    paramwise_cfg=dict(decay_rate=0.8, decay_type="layer"),
    optimizer=dict(lr=2.5e-4 * 4096 / 256),
)
