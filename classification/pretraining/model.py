"""The fully convolutional masked autoencoder of ConvNeXt V2 (Woo et al., 2023, section 3)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from backbones.convnext import Block, ConvNeXt
from backbones.errors import ConfigError
from backbones.layers import GRN, init_trunc_normal
from backbones.masked import LAYOUTS, MaskedForm, hidden_mask
from classification.pretraining.patches import patch_targets, to_images, to_patches
from engine.config.building import build
from engine.config.schema import is_number, is_whole

MASK_RATIO = 0.6  # Figure 2 and section 3
INIT_STD = 0.02  # of weights and mask token
WITHOUT_GRN = (
    "this ConvNeXt has no response normalisation, without which its features collapse in masked pre-training "
    "(ConvNeXt V2, section 3.3): a convnextv2_* gains more"
)
PREPROCESSOR = {
    "type": "ImgDataPreprocessor",
    "mean": [255 * value for value in IMAGENET_DEFAULT_MEAN],
    "std": [255 * value for value in IMAGENET_DEFAULT_STD],
}


@MODELS.register_module()
class MaskedAutoencoder(BaseModel):
    """A ConvNeXt that sees a part of each image, and a decoder that predicts the rest.

    Units of 32 x 32 pixels are hidden. The encoder computes the visible ones as a sparse convolutional network would
    (:mod:`backbones.masked`); 1 x 1 convolution, mask token at hidden units, blocks of V2 and another 1 x 1 convolution
    make 32 * 32 * 3 pixels of each unit from it. Names of layers are those of the released pre-training, whose files
    load whole; the initial standard deviation is 0.02 throughout, where the released code has 1 by a default of timm's
    (facebookresearch/ConvNeXt-V2 models/fcmae.py, lines 70-92, whose NaN in fine-tuning its issue 64 reports).

    Args:
        backbone: Config of a ConvNeXt; one without response normalisation (V1) works with a warning.
        mask_ratio: Fraction of the units that is hidden; 0.6 in the paper (Figure 2 and section 3).
        decoder_dim: Channels of the decoder.
        decoder_depth: Blocks of the decoder.
        normalize_patches: Whether targets are normalised by mean and unbiased variance of their patch.
        form: Layout of the encoder's maps: ``packed`` computes the visible units alone, ``dense`` whole maps with zeros
            in them. The results differ by rounding.
        data_preprocessor: Config of the normalisation; that of ImageNet by default.

    Raises:
        ConfigError: If the backbone is no ConvNeXt of four stages, or a number is out of range.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        mask_ratio: float = MASK_RATIO,
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        normalize_patches: bool = True,
        form: MaskedForm = "packed",
        data_preprocessor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor or PREPROCESSOR)
        if not is_number(mask_ratio) or not 0 < mask_ratio < 1:
            raise ConfigError(f"model.mask_ratio={mask_ratio!r}: a fraction between 0 and 1 is needed, such as 0.6")
        if form not in LAYOUTS:
            raise ConfigError(f"model.form={form!r}: choose from {', '.join(LAYOUTS)}")
        if not (is_whole(decoder_dim, 1) and is_whole(decoder_depth, 1)):
            raise ConfigError(
                f"model.decoder_dim={decoder_dim!r}, decoder_depth={decoder_depth!r}: whole numbers above 0 are needed"
            )
        if not isinstance(normalize_patches, bool):
            raise ConfigError(f"model.normalize_patches={normalize_patches!r}: True or False is needed")
        network = build(MODELS, {**backbone, "out_indices": None}, "model.backbone")
        if not isinstance(network, ConvNeXt):
            raise ConfigError(
                f"model.backbone.type={backbone.get('type')!r}: masked pre-training needs a ConvNeXt or ConvNeXt V2, "
                "such as convnextv2_tiny"
            )
        if not any(isinstance(module, GRN) for module in network.modules()):
            print_log(WITHOUT_GRN, "current", logging.WARNING)
        network.add_module("norm", nn.Identity())  # of the pooled vector, which nothing uses here
        self.backbone = network
        self.mask_ratio, self.form, self.normalize_patches = mask_ratio, form, normalize_patches
        self.unit = network.strides[-1]
        channels = network.get_parameter("downsample_layers.0.0.weight").shape[1]
        self.proj = nn.Conv2d(network.num_features, decoder_dim, 1)
        self.mask_token = nn.Parameter(torch.zeros(1, decoder_dim, 1, 1))
        blocks = (Block(decoder_dim, layer_scale_init_value=0, use_grn=True) for _ in range(decoder_depth))
        self.decoder = nn.Sequential(*blocks)
        self.pred = nn.Conv2d(decoder_dim, self.unit**2 * channels, 1)
        for part in (self.proj, self.decoder, self.pred):
            part.apply(partial(init_trunc_normal, std=INIT_STD))
        nn.init.normal_(self.mask_token, std=INIT_STD)

    def split_units(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the visible and of the hidden units, each ascending, int64 ``(N, V)`` and ``(N, units - V)``.

        ``V`` is :func:`visible_units`.

        Args:
            order: Random order of the units of each image, int64 ``(N, units)``; the first ``V`` are visible.

        Raises:
            ConfigError: If no unit would be visible.
        """
        units = order.shape[1]
        count = visible_units(units, self.mask_ratio)
        if not count:
            raise ConfigError(f"model.mask_ratio={self.mask_ratio} hides all of {units} units: take larger images")
        return order[:, :count].sort(1).values, order[:, count:].sort(1).values

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Reconstruct images ``(N, C, H, W)``, of which what is left over beyond whole units is ignored.

        Args:
            inputs: Normalised images.
            data_samples: ``order``, a random order of the units, int64 ``(N, units)``, and ``img_path``; in ``tensor``
                mode units are in the order of reading without it.
            mode: ``tensor`` returns the predicted pixels of all units, ``(N, unit * unit * C, rows, columns)``,
                ``loss`` the mean squared error over the hidden units, ``predict`` an element per image with ``loss``,
                ``hidden`` (bool, ``(rows, columns)``), ``predicted_units`` (float16, ``(hidden, unit * unit * C)``, as
                the loss compares them), ``image`` and ``reconstruction`` (``(C, H, W)``, values as in the files) and
                ``img_path``.
        """
        grid = (inputs.shape[-2] // self.unit, inputs.shape[-1] // self.unit)
        if data_samples is None:
            order = torch.arange(grid[0] * grid[1], device=inputs.device).expand(len(inputs), -1)
        else:
            order = data_samples["order"]
        visible, hidden = self.split_units(order)
        pixels = self.decode(self.backbone(inputs, visible, self.form), hidden_mask(visible, grid))
        if mode == "tensor":
            return pixels
        target, mean, std = self._targets(inputs)
        found = pixels.permute(0, 2, 3, 1).flatten(1, 2).float()
        errors = (_rows(found, hidden) - _rows(target, hidden)).square().mean(-1)
        if mode == "loss":
            return {"loss": errors.mean()}
        return self._predictions(inputs, found, found * std + mean, hidden, errors.mean(1), data_samples["img_path"])

    def decode(self, features: Tensor, hidden: Tensor) -> Tensor:
        """Predicted pixels, ``(N, unit * unit * C, rows, columns)``.

        Args:
            features: Output of the encoder, ``(N, channels, rows, columns)``.
            hidden: Whether each unit is hidden, bool ``(N, rows, columns)``.
        """
        x = self.proj(features)
        x = torch.where(hidden.unsqueeze(1), self.mask_token.to(x.dtype), x)
        return self.pred(self.decoder(x.contiguous(memory_format=torch.channels_last)))

    def _targets(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of each unit, ``(N, units, unit * unit * C)``, and their mean and standard deviation, or 0 and 1."""
        return patch_targets(to_patches(images, self.unit).float(), self.normalize_patches)

    def _predictions(
        self, inputs: Tensor, found: Tensor, patches: Tensor, hidden: Tensor, losses: Tensor, paths: Sequence[str]
    ) -> list[BaseDataElement]:
        grid = (inputs.shape[-2] // self.unit, inputs.shape[-1] // self.unit)
        masks = torch.zeros(patches.shape[:2], dtype=torch.bool, device=hidden.device).scatter(1, hidden, True)
        return [
            BaseDataElement(
                metainfo={"img_path": path},
                image=image,
                reconstruction=predicted,
                predicted_units=units,
                hidden=mask,
                loss=loss,
            )
            for path, image, predicted, units, mask, loss in zip(
                paths,
                self._as_read(inputs),
                self._as_read(to_images(patches, grid, self.unit)),
                _rows(found, hidden).half(),
                masks.unflatten(1, grid),
                losses.tolist(),
                strict=True,
            )
        ]

    def _as_read(self, images: Tensor) -> Tensor:
        """Normalised images ``(N, C, H, W)`` with the values that the files have."""
        read: Tensor = images.float() * self.data_preprocessor.std + self.data_preprocessor.mean
        return read


def visible_units(units: int, mask_ratio: float) -> int:
    """Number of the units of an image that are visible, as released: 19 of 49 at a ratio of 0.6."""
    return int(units * (1 - mask_ratio))


def _rows(patches: Tensor, units: Tensor) -> Tensor:
    """The patches ``(N, V, D)`` of some units ``(N, V)``, of all ``(N, units, D)``."""
    return patches.gather(1, units.unsqueeze(2).expand(-1, -1, patches.shape[2]))
