"""ConvNeXt-T on a tenth of ImageNet-1K: kernel sizes and expansion ratios compared.

    bash tools/dist_train.sh configs/classification/convnext_tiny_in1k_subset_ablation.py 8

One run for each of model.backbone.kernel_size=3, 5, 7, 9, 11 and model.backbone.mlp_ratio=2, 3, 4, 6, given after
--cfg-options. The source, "ConvNeXt-XL on 128 A100", compares "smaller variants" on "a subset" without numbers: here
ConvNeXt-T on every tenth image of each class in the order of their names; validation is on all images. Table 2.5
with a quarter of its batch and rate, so that 128 thousand images are 125 steps. 8 GPUs with 128 images each.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/imagenet_training.py",
    "../_base_/in1k_300e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_tiny", drop_path_rate=0.1, layer_scale_init_value=1e-6))
train_dataloader = dict(dataset=dict(every=10))

batch = dict(size=1024)
optim_wrapper = dict(optimizer=dict(lr=4e-3 * 1024 / 4096))
