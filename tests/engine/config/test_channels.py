"""``model.backbone.in_channels``: what reads and normalises the images follows it, or one line says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from backbones.errors import ConfigError
from engine.config.load import Resolved, load_config, resolve
from engine.config.world import Launch

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
CLASSIFIER = CONFIGS / "classification" / "convnext_tiny_in1k_300e.py"
DETECTOR = CONFIGS / "detection" / "mask_rcnn_convnext_tiny_coco_3x.py"
SEGMENTOR = CONFIGS / "segmentation" / "upernet_convnext_tiny_ade20k_160k.py"
BOTH = ("mean", "std")


def load(path: Path, channels: int, **options: Any) -> Resolved:
    options = {key.replace("__", "."): value for key, value in options.items()}
    return load_config(path, {"model.backbone.in_channels": channels, **options}, Launch())


def steps_of(cfg: Config, split: str = "train") -> list[Any]:
    return cfg[f"{split}_dataloader"].dataset.pipeline


def statistics(count: int) -> dict[str, list[float]]:
    return {f"model__data_preprocessor__{name}": [2.0] * count for name in BOTH}


@pytest.mark.parametrize("path", [CLASSIFIER, DETECTOR, SEGMENTOR], ids=lambda path: path.parent.name)
def test_grey_images_are_read_and_normalised_without_further_settings(path: Path) -> None:
    resolved = load(path, 1)
    for split in ("train", "val", "test"):
        assert steps_of(resolved.cfg, split)[0].channels == 1
    preprocessor = resolved.cfg.model.data_preprocessor
    if path != CLASSIFIER:  # the classifier has its default in the model
        assert (preprocessor.mean, preprocessor.std) == ([114.495], [57.63])  # averages of ImageNet's three
        assert not preprocessor.bgr_to_rgb


@pytest.mark.parametrize("path", [DETECTOR, SEGMENTOR], ids=lambda path: path.parent.name)
def test_several_bands_need_their_mean_and_deviation(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mean has 3 values for images of 5 channels: state mean and std with 5"):
        load(path, 5)
    preprocessor = load(path, 5, **statistics(5)).cfg.model.data_preprocessor
    assert preprocessor.type.startswith("AnyChannels")
    shared = load(path, 5, **statistics(1)).cfg.model.data_preprocessor  # one value for all
    assert not shared.type.startswith("AnyChannels")


def test_three_channels_change_nothing() -> None:
    assert "channels" not in steps_of(load(SEGMENTOR, 3).cfg)[0]
    assert not load(SEGMENTOR, 3).cfg.model.data_preprocessor.type.startswith("AnyChannels")


@pytest.mark.parametrize("path", [DETECTOR, SEGMENTOR], ids=lambda path: path.parent.name)
def test_statistics_for_pixels_from_0_to_1_are_refused(path: Path) -> None:
    std = "model__data_preprocessor__std"
    with pytest.raises(ConfigError, match=r"std=\[0\.229, 0\.224, 0\.225\] is for pixels from 0 to 1"):
        load(path, 3, **{std: [0.229, 0.224, 0.225]})
    load(path, 3, **{std: [1.0, 1.0, 1.0]})
    load(path, 5, **{**statistics(5), std: [0.2] * 5})  # bands may have any values
    for channels in (3, 5):
        with pytest.raises(ConfigError, match=r"std=\[.*\]: all have to be above 0"):
            load(path, channels, **{**statistics(channels), std: [0.0] + [1.0] * (channels - 1)})


@pytest.mark.parametrize("path", [CLASSIFIER, DETECTOR, SEGMENTOR], ids=lambda path: path.parent.name)
def test_statistics_of_no_or_other_channels_are_refused(path: Path) -> None:
    for key in BOTH:
        with pytest.raises(ConfigError, match=rf"data_preprocessor\.{key}=58: a list of numbers, one per channel"):
            load(path, 3, **{f"model__data_preprocessor__{key}": 58})
        with pytest.raises(ConfigError, match=rf"{key} has 2 values for images of 3 channels"):
            load(path, 3, **{f"model__data_preprocessor__{key}": [0.5, 0.5]})


def test_what_changes_colours_is_left_out_and_said() -> None:
    segmentor, classifier = load(SEGMENTOR, 4, **statistics(4)), load(CLASSIFIER, 4)
    assert "PhotoMetricDistortion" not in [step.type for step in steps_of(segmentor.cfg)]
    assert "PhotoMetricDistortion: left out, for colours alone, with in_channels=4" in segmentor.notes
    assert "rand_augment" not in steps_of(classifier.cfg)[0]
    assert "rand_augment: left out, for colours alone, with in_channels=4" in classifier.notes
    assert "PhotoMetricDistortion" in [step.type for step in steps_of(load(SEGMENTOR, 3).cfg)]


def test_the_libraries_reader_is_replaced_and_a_reader_of_one_s_own_stays() -> None:
    theirs = {"type": "LoadImageFromFile", "color_type": "unchanged", "imdecode_backend": "tifffile"}
    cfg = load(SEGMENTOR, 5, test_pipeline=[theirs], **statistics(5)).cfg
    assert steps_of(cfg, "test")[0] == {"type": "LoadCheckedImage", "channels": 5}
    own = {"type": "MyReader", "bands": (1, 2, 3, 4, 5)}
    assert steps_of(load(SEGMENTOR, 5, test_pipeline=[own], **statistics(5)).cfg, "test")[0] == own


def test_images_for_several_scales_are_read_alike() -> None:
    assert load(SEGMENTOR, 1).cfg.tta_pipeline[0].channels == 1


def test_the_pipeline_of_the_last_epochs_reads_alike() -> None:
    hook = load(CONFIGS / "detection/rtmdet_convnext_base_in22k_coco_100e.py", 1).cfg.custom_hooks[-1]
    assert hook.pipeline[0] == {"type": "LoadCheckedImage", "channels": 1}
    assert "YOLOXHSVRandomAug" not in [step.type for step in hook.pipeline]


def test_a_pipeline_for_another_number_is_refused() -> None:
    step = {"type": "LoadCheckedImage", "channels": 4}
    with pytest.raises(ConfigError, match=r"channels=4: model\.backbone\.in_channels is 1"):
        load(SEGMENTOR, 1, test_pipeline=[step])
    with pytest.raises(ConfigError, match=r"channels=4: model\.backbone\.in_channels is 3"):
        load(SEGMENTOR, 3, test_pipeline=[step])


@pytest.mark.parametrize("channels", [0, -1, 1.5, "grey"])
def test_no_number_of_channels(channels: Any) -> None:
    with pytest.raises(ConfigError, match=r"in_channels=.*: a whole number from 1 up"):
        load(CLASSIFIER, channels)


def test_three_channels_that_are_no_colours_are_stated_in_a_reader() -> None:
    resolved = load(SEGMENTOR, 3, test_pipeline=[{"type": "LoadCheckedImage", "channels": 3}])
    assert steps_of(resolved.cfg)[0].channels == steps_of(resolved.cfg, "test")[0].channels == 3
    assert not resolved.cfg.model.data_preprocessor.bgr_to_rgb
    assert "PhotoMetricDistortion: left out, for colours alone, with in_channels=3" in resolved.notes


@pytest.mark.parametrize("channels", [1, 5])
def test_a_resolved_config_resolves_to_itself(channels: int) -> None:
    first = load(SEGMENTOR, channels, **(statistics(5) if channels == 5 else {})).cfg
    again = resolve(Config(first.to_dict()), first.batch.size, Launch())
    assert again.cfg.to_dict() == first.to_dict()
    assert not [note for note in again.notes if "left out" in note or "grey" in note]
