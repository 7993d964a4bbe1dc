"""UperNet with ConvNeXt-S on ADE20K, 160k iterations: 48.7 mIoU single-scale, 49.6 multi-scale (Tables 2.4 and 2.7).

    bash tools/dist_train.sh configs/segmentation/upernet_convnext_small_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=work_dirs/convnext_small_in1k_300e/epoch_300.pth

8 GPUs with 2 images each; 82 M parameters, 1027 GFLOPs at 2048 x 512. One scale is tested by sliding windows, several
on whole images (tools/test.py ... --tta).
"""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/schedule_160k.py", "../_base_/runtime.py"]

model = dict(backbone=dict(type="convnext_small", drop_path_rate=0.3))

optim_wrapper = dict(paramwise_cfg=dict(num_groups=12))

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
