"""UperNet with Swin-S on ADE20K, 160k iterations: 49.5 mIoU multi-scale (Table 2.4).

    bash tools/dist_train.sh configs/segmentation/upernet_swin_small_ade20k_160k.py 8 \
        --cfg-options model.backbone.weights=work_dirs/swin_small_in1k_300e/epoch_300.pth

8 GPUs with 2 images each; 81 M parameters, 1038 GFLOPs at 2048 x 512. One scale is tested by sliding windows, several
on whole images (tools/test.py ... --tta). The settings are those of Swin's own configs: 6e-5, weight decay 0.01,
stochastic depth 0.3, no stage-wise decay; all is subject to weight decay but norms and tables of positions. Trained in
float32, as released; --cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16 trains in bfloat16.
"""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/schedule_160k.py", "../_base_/runtime.py"]

model = dict(backbone=dict(_delete_=True, type="swin_small", out_indices=(0, 1, 2, 3), drop_path_rate=0.3))

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(_delete_=True, no_decay=("absolute_pos_embed", "relative_position_bias_table", "norm")),
)

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16_000))
