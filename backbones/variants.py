"""Table of the named networks: one row each.

Sources: Liu et al., "A ConvNet for the 2020s" (CVPR 2022), section 4 (T/S/B/L/XL), sizes from Table 1; isotropic
ones from its Table 2; V2 from Woo et al., "ConvNeXt V2" (CVPR 2023), Appendix A.1 and the table of its weights. The
small sizes of V1 (atto, femto, pico, nano) have the depths and widths of V2 with the V1 block; their cost is timm's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from mmengine.logging import print_log

from backbones.errors import ConfigError

FORMER_ARGUMENTS = {"expansion": "mlp_ratio", "grn": "use_grn"}


def current_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a ConvNeXt with the names of release 0.1 replaced by today's, which the log says.

    The former names ``expansion`` and ``grn`` are accepted in configs and by
    :func:`backbones.registry.build_backbone` for one release.

    Raises:
        ConfigError: If an argument is given under both names.
    """
    renamed = dict(arguments)
    for former, current in FORMER_ARGUMENTS.items():
        if former not in arguments:
            continue
        if current in arguments:
            raise ConfigError(f"{former} is the former name of {current}: give {current} alone")
        print_log(
            f"{former} is now called {current}; the former name is accepted for one release", "current", logging.WARNING
        )
        renamed[current] = renamed.pop(former)
    return renamed


@dataclass(frozen=True)
class Variant:
    """Depths and widths of one ConvNeXt, and its cost as printed in the source.

    Attributes:
        depths: Blocks per stage.
        dims: Channels per stage.
        params: Printed parameters in millions, with a head of 1,000 classes.
        gflops: Printed multiply-adds in billions at 224 x 224.
        version: ConvNeXt version, 1 or 2.
    """

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    params: float
    gflops: float
    version: int = 1

    def arguments(self) -> dict[str, Any]:
        """Arguments of :class:`backbones.convnext.ConvNeXt`. V2 has response normalisation and no layer scale."""
        block = {"use_grn": True, "layer_scale_init_value": 0.0} if self.version == 2 else {}
        return {"depths": self.depths, "dims": self.dims, **block}


@dataclass(frozen=True)
class IsotropicVariant:
    """Depth and width of one isotropic ConvNeXt, and its cost as printed in the source.

    Attributes:
        depth: Number of blocks.
        dim: Channels of the blocks.
        layer_scale_init_value: Initial layer scale; 0 for S and B, which are trained without (Appendix A.1).
        params: Printed parameters in millions, with a head of 1,000 classes.
        gflops: Printed multiply-adds in billions at 224 x 224.
    """

    depth: int
    dim: int
    layer_scale_init_value: float
    params: float
    gflops: float

    def arguments(self) -> dict[str, Any]:
        """Arguments of :class:`backbones.isotropic.IsotropicConvNeXt`."""
        return {"depth": self.depth, "dim": self.dim, "layer_scale_init_value": self.layer_scale_init_value}


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

CONVNEXT_V2 = {
    "convnextv2_atto": Variant((2, 2, 6, 2), (40, 80, 160, 320), 3.7, 0.55, version=2),
    "convnextv2_femto": Variant((2, 2, 6, 2), (48, 96, 192, 384), 5.2, 0.78, version=2),
    "convnextv2_pico": Variant((2, 2, 6, 2), (64, 128, 256, 512), 9.1, 1.37, version=2),
    "convnextv2_nano": Variant((2, 2, 8, 2), (80, 160, 320, 640), 15.6, 2.45, version=2),
    "convnextv2_tiny": Variant((3, 3, 9, 3), (96, 192, 384, 768), 28.6, 4.47, version=2),
    "convnextv2_base": Variant((3, 3, 27, 3), (128, 256, 512, 1024), 89, 15.4, version=2),
    "convnextv2_large": Variant((3, 3, 27, 3), (192, 384, 768, 1536), 198, 34.4, version=2),
    "convnextv2_huge": Variant((3, 3, 27, 3), (352, 704, 1408, 2816), 660, 115, version=2),
}

CONVNEXT_ISOTROPIC = {
    "convnext_isotropic_small": IsotropicVariant(18, 384, 0.0, 22, 4.3),
    "convnext_isotropic_base": IsotropicVariant(18, 768, 0.0, 87, 16.9),
    "convnext_isotropic_large": IsotropicVariant(36, 1024, 1e-6, 306, 59.7),
}


@dataclass(frozen=True)
class TimmVariant:
    """One baseline of timm, and its cost as printed in the dissertation.

    Attributes:
        timm_name: Name of the network in timm.
        image_size: Height and width in pixels that the network is built for and its cost is printed at.
        params: Printed parameters in millions, with a head of 1,000 classes; ``None`` if not printed.
        gflops: Printed multiply-adds in billions at ``image_size``; ``None`` if not printed.
        timm_options: Arguments that differ from those of timm's network of that name.
    """

    timm_name: str
    image_size: int
    params: float | None = None
    gflops: float | None = None
    timm_options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the classes of :mod:`backbones.timm_backbones`."""
        return {"timm_name": self.timm_name, "timm_options": self.timm_options}


# Numbers: Zhuang Liu, "Efficient and Scalable Neural Architectures for Visual Recognition" (dissertation, 2022),
# Tables 2.1, 2.2 and 2.12; ResNet-50 Table 2.10.
SWIN = {
    "swin_tiny": TimmVariant("swin_tiny_patch4_window7_224", 224, 28, 4.5),
    "swin_small": TimmVariant("swin_small_patch4_window7_224", 224, 50, 8.7),
    "swin_base": TimmVariant("swin_base_patch4_window7_224", 224, 88, 15.4),
    "swin_large": TimmVariant("swin_large_patch4_window7_224", 224, 197, 34.5),
    "swin_base_384": TimmVariant("swin_base_patch4_window12_384", 384, 88, 47.1),
    "swin_large_384": TimmVariant("swin_large_patch4_window12_384", 384, 197, 103.9),
}
# DeiT is the ViT of the same size in another recipe: the network is one, the names are those of the tables.
# ViT-Huge has patches of 14 pixels in timm; here 16 at 512 x 512.
VIT = {
    "deit_small": TimmVariant("deit_small_patch16_224", 224, 22, 4.6),
    "deit_base": TimmVariant("deit_base_patch16_224", 224, 87, 17.6),
    "vit_small": TimmVariant("vit_small_patch16_224", 224, 22, 4.6),
    "vit_base": TimmVariant("vit_base_patch16_224", 224, 87, 17.6),
    "vit_large": TimmVariant("vit_large_patch16_224", 224, 304, 61.6),
    "vit_base_384": TimmVariant("vit_base_patch16_384", 384, 87, 55.5),
    "vit_large_384": TimmVariant("vit_large_patch16_384", 384, 305, 191.1),
    "vit_huge": TimmVariant("vit_huge_patch14_224", 512, timm_options={"patch_size": 16, "img_size": 512}),
}
# "tf_": with the padding and the epsilon of the released weights. EfficientNetV2-XL's 94.0 G are printed beside
# 480 x 480 in Table 2.1, and are those of 512 x 512.
CONVNETS = {
    "regnety_16g": TimmVariant("regnety_160", 224, 84, 16.0),
    "efficientnet_b7": TimmVariant("tf_efficientnet_b7", 600, 66, 37.0),
    "efficientnetv2_l": TimmVariant("tf_efficientnetv2_l", 480, 120, 53.0),
    "efficientnetv2_xl": TimmVariant("tf_efficientnetv2_xl", 512, 208, 94.0),
    "bit_r101x3": TimmVariant("resnetv2_101x3_bit", 384, 388, 204.6),
    "bit_r152x4": TimmVariant("resnetv2_152x4_bit", 480, 937, 840.5),
    "resnet50": TimmVariant("resnet50", 224, gflops=4.09),
    "resnext101_32x4d": TimmVariant("resnext101_32x4d", 224),
    "resnext101_64x4d": TimmVariant("resnext101_64x4d", 224),
}
BASELINES = {**SWIN, **VIT, **CONVNETS}
