"""Step 5 of 6 in miniature: ConvNeXt atto against V2 atto, at 32 and 48 pixels.

python tools/sweep.py configs/sweeps/digits/network.py --jobs 2
"""

_base_ = "baseline.py"

space = {
    "model.backbone.type": dict(grid=["convnext_atto", "convnextv2_atto"]),
    "resolution": dict(
        grid={
            "32": {"train_pipeline.0.size": 32, "test_pipeline.0.size": 32},
            "48": {"train_pipeline.0.size": 48, "test_pipeline.0.size": 48},
        }
    ),
}
seeds = 1
