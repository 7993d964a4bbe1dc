"""ConvNeXt-Pico on ImageNet-1K at 224 x 224 by the recipe of Table 2.5 of the dissertation.

    bash tools/dist_train.sh configs/classification/convnext_pico_in1k_300e.py 8

No source prints this run, so no number is expected. All settings, stochastic depth too, are ConvNeXt-T's. The released
code's hardware: 4 machines of 8 GPUs with 128 images each; fewer are made up for by accumulation.
"""

_base_ = [
    "../_base_/classification.py",
    "../_base_/imagenet1k.py",
    "../_base_/imagenet_training.py",
    "../_base_/in1k_300e.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(type="convnext_pico", drop_path_rate=0.1, layer_scale_init_value=1e-6))
