"""ViT-Huge/16 fine-tuned on ImageNet-1K at 512 x 512: 89.1 % top-1, mean of three runs.

    bash tools/dist_train.sh configs/classification/vit_huge_ft_in1k_512.py 8 \
        --cfg-options model.backbone.weights=work_dirs/vit_huge_in22k_512/iter_623896.pth

All three in one command: python tools/repeat.py, see docs/recipes.md. Not printed: the length, here the ViT paper's
20,000 steps, and the decay's shape, here pre-training's cosine. H100 (80 GB): 4 machines of 8 take 8 images each in 2
steps of accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/vit_huge_512.py",
    "../_base_/runtime.py",
]

train_dataloader = dict(sampler=dict(type="InfiniteSampler"))

batch = dict(size=512, per_gpu=8, lr_rule="linear")
optim_wrapper = dict(optimizer=dict(lr=5e-5))

train_cfg = dict(type="IterationLoop", max_iters=20_000, val_interval=2_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, end=2_001, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=2_000, eta_min=0.0, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2_000))
