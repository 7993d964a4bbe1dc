"""``model.backbone.in_channels`` other than 3: what reads and normalises the images follows it."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS

from backbones.channels import COLOUR_CHANNELS, configured_channels
from backbones.errors import ConfigError
from engine.config.datasets import DATA_KEYS, mappings
from engine.config.schema import is_number, is_whole

# Steps of pipelines with an argument "channels".
CHANNEL_READERS = ("ClassificationTransform", "LoadCheckedImage", "MaskedImageTransform")
# Changes of colours, which are for three channels: steps, and settings of steps.
COLOUR_STEPS = {
    *("PhotoMetricDistortion", "YOLOXHSVRandomAug", "ColorTransform", "Color", "RandAugment", "AutoAugment", "CLAHE"),
    *("AutoContrast", "Brightness", "Contrast", "Equalize", "Invert", "Posterize", "Sharpness", "Solarize"),
    *("SolarizeAdd", "AdjustGamma", "RGB2Gray", "AutoAugmentPolicy", "ColorJitter", "RandomGrayscale"),
}
COLOUR_SETTINGS = ("rand_augment", "color_jitter")
ANY_CHANNELS = "AnyChannels"  # beginning of the names of data preprocessors for any number of mean values


def set_image_channels(cfg: Config, notes: list[str]) -> None:
    """Make pipelines read the backbone's number of channels, and normalise them; a reader of one's own stays.

    Raises:
        ConfigError: If a pipeline, or mean and deviation, are for another number, or the latter for other pixel values.
    """
    if not is_whole(channels := configured_channels(cfg.model), 1):
        raise ConfigError(f"model.backbone.in_channels={channels!r}: a whole number from 1 up is needed")
    parts = {key: cfg[key] for key in cfg if key.endswith(DATA_KEYS) and cfg[key]}
    stated = {step.get("channels") for step in mappings(parts) if step.get("type") in CHANNEL_READERS} - {None}
    if wrong := stated - {channels}:
        raise ConfigError(f"pipelines with channels={min(wrong)}: model.backbone.in_channels is {channels}")
    colours = channels == COLOUR_CHANNELS and not stated
    _check_statistics(cfg, channels, colours)
    if colours:
        return
    left_out: dict[str, None] = {}  # in the order in which they are found
    for key, part in parts.items():
        cfg[key] = _read(part, channels, left_out)
    if cfg.model.get("data_preprocessor"):
        _set_statistics(cfg.model.data_preprocessor, channels, notes)
        _set_preprocessor(cfg.model.data_preprocessor, cfg)
    if left_out:
        notes.append(f"{', '.join(left_out)}: left out, for colours alone, with in_channels={channels}")


def _check_statistics(cfg: Config, channels: int, colours: bool) -> None:
    """Refuse mean and deviation for another number of channels, of 0, or of 0 to 1 where colours are of 0 to 255."""
    settings = cfg.model.get("data_preprocessor") or {}
    for key in ("mean", "std"):
        values = settings.get(key)
        if values is None:
            continue
        if not isinstance(values, list | tuple) or not all(map(is_number, values)):
            raise ConfigError(
                f"model.data_preprocessor.{key}={values!r}: a list of numbers, one per channel, is needed"
            )
        averaged = channels == 1 and len(values) == COLOUR_CHANNELS
        if len(values) not in (1, channels) and not averaged:
            raise ConfigError(
                f"model.data_preprocessor.{key} has {len(values)} values for images of {channels} channels: state mean "
                f"and std with {channels} values each, for the pixels as they are in the files"
            )
    std = settings.get("std") or ()
    if any(value <= 0 for value in std):
        raise ConfigError(f"model.data_preprocessor.std={list(std)}: all have to be above 0")
    kind = _preprocessor_class(settings.get("type"), cfg) if std and colours else None
    if isinstance(kind, type) and issubclass(kind, ImgDataPreprocessor) and max(std) < 1:
        raise ConfigError(
            f"model.data_preprocessor.std={list(std)} is for pixels from 0 to 1, and they are read from 0 to 255: "
            "multiply mean and std by 255"
        )


def _read(node: Any, channels: int, left_out: dict[str, None]) -> Any:
    """A part of a pipeline that reads images of so many channels, without what changes colours."""
    if isinstance(node, list | tuple):
        left_out.update(dict.fromkeys(one["type"] for one in node if _is_colour_step(one)))
        return type(node)(_read(one, channels, left_out) for one in node if not _is_colour_step(one))
    if not isinstance(node, dict):
        return node
    for key, value in node.items():
        node[key] = _read(value, channels, left_out)
    if node.get("type") not in CHANNEL_READERS:
        return node
    left_out.update(dict.fromkeys(key for key in COLOUR_SETTINGS if node.pop(key, None)))
    kept = {key: value for key, value in node.items() if key not in ("color_type", "imdecode_backend")}
    return ConfigDict({**kept, "channels": channels})


def _is_colour_step(step: Any) -> bool:
    return isinstance(step, dict) and str(step.get("type")).rpartition(".")[2] in COLOUR_STEPS


def _set_statistics(preprocessor: Any, channels: int, notes: list[str]) -> None:
    for key in ("bgr_to_rgb", "rgb_to_bgr"):
        if preprocessor.get(key):
            preprocessor[key] = False
    for key in ("mean", "std") if channels == 1 else ():
        if len(values := preprocessor.get(key) or ()) == COLOUR_CHANNELS:
            preprocessor[key] = [round(sum(values) / COLOUR_CHANNELS, 4)]
            notes.append(f"data_preprocessor.{key} of grey images: {preprocessor[key][0]}, the average of the colours'")


def _set_preprocessor(preprocessor: Any, cfg: Config) -> None:
    """Choose the data preprocessor for any number of values; mmengine's allow 1 or 3."""
    name = f"{ANY_CHANNELS}{preprocessor.get('type')}"
    if len(preprocessor.get("mean") or ()) > 1 and _preprocessor_class(name, cfg) is not None:
        preprocessor.type = name


def _preprocessor_class(name: str | None, cfg: Config) -> Any:
    with MODELS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
        return registry.get(name) if name else None
