"""THE table: one row per named network.

Sources: Liu et al., "A ConvNet for the 2020s" (CVPR 2022), section 4 (T/S/B/L/XL), sizes from Table 1;
the small sizes (atto, femto, pico, nano) are those of Woo et al., "ConvNeXt V2" (CVPR 2023), Appendix A.1, with the
V1 block; their sizes are the ones that timm lists for its networks of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """Shape of one ConvNeXt and what the source prints about it.

    Attributes:
        depths: Blocks per stage.
        dims: Channels per stage.
        params: Parameters in millions, with a head of 1,000 classes, as printed by the source.
        gflops: Multiply-adds in billions at 224 x 224, as printed by the source.
    """

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    params: float
    gflops: float


CONVNEXT_V1 = {
    "convnext_atto": Variant((2, 2, 6, 2), (40, 80, 160, 320), 3.70, 0.55),
    "convnext_femto": Variant((2, 2, 6, 2), (48, 96, 192, 384), 5.22, 0.79),
    "convnext_pico": Variant((2, 2, 6, 2), (64, 128, 256, 512), 9.05, 1.37),
    "convnext_nano": Variant((2, 2, 8, 2), (80, 160, 320, 640), 15.59, 2.46),
    "convnext_tiny": Variant((3, 3, 9, 3), (96, 192, 384, 768), 28.6, 4.5),
    "convnext_small": Variant((3, 3, 27, 3), (96, 192, 384, 768), 50.0, 8.7),
    "convnext_base": Variant((3, 3, 27, 3), (128, 256, 512, 1024), 88.6, 15.4),
    "convnext_large": Variant((3, 3, 27, 3), (192, 384, 768, 1536), 197.8, 34.4),
    "convnext_xlarge": Variant((3, 3, 27, 3), (256, 512, 1024, 2048), 350.2, 60.9),
}
