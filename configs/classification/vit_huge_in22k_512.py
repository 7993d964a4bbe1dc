"""ViT-Huge/16 pre-trained on ImageNet-22K at 512 x 512 ("ViT-Huge/16 at 512").

    bash tools/dist_train.sh configs/classification/vit_huge_in22k_512.py 8

Its number is that of fine-tuning: 89.1 % top-1 on ImageNet-1K by vit_huge_ft_in1k_512.py. H100 (80 GB) GPUs; the source
does not say how many: 8 machines of 8 take 8 images each in 4 steps of accumulation.

Not printed: the peak rate, here the ViT paper's 3e-4 for this network, and the length, here its 90 epochs of
ImageNet-22K's 14,197,122 images. The source counts warm-up in steps, and so does this run.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/vit_huge_512.py",
    "../_base_/runtime.py",
]

classes = "imagenet-22k"
data_root = "data/imagenet22k"
train_dataloader = dict(sampler=dict(type="InfiniteSampler"))

batch = dict(size=2048, per_gpu=8, lr_rule="linear")
optim_wrapper = dict(optimizer=dict(lr=3e-4))

train_cfg = dict(type="IterationLoop", max_iters=90 * 14_197_122 // 2048)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, end=10_001, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=10_000, eta_min=1e-6, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=10_000))
