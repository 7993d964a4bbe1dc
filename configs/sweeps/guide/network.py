"""Step 5 of 6: ConvNeXt against ConvNeXt V2, three sizes, 224 and 384 pixels.

python tools/sweep.py configs/sweeps/guide/network.py
"""

_base_ = "baseline.py"

space = {
    "network": dict(
        grid={
            "V1 tiny": {"model.backbone.type": "convnext_tiny"},
            "V1 base": {"model.backbone.type": "convnext_base"},
            "V1 large": {"model.backbone.type": "convnext_large"},
            "V2 tiny": {"model.backbone.type": "convnextv2_tiny"},
            "V2 base": {"model.backbone.type": "convnextv2_base"},
            "V2 large": {"model.backbone.type": "convnextv2_large"},
        }
    ),
    "resolution": dict(
        grid={
            "224": {"train_pipeline.0.size": 224, "test_pipeline.0.size": 224},
            "384": {"train_pipeline.0.size": 384, "test_pipeline.0.size": 384},
        }
    ),
}
seeds = 3
