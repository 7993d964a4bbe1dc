"""The registry of data checkers."""

from __future__ import annotations

import pytest

from engine.data.checker import DataCheckerRegistry, DatasetChecker


def test_registry_finds_the_checker_of_the_nearest_base_class() -> None:
    class Images: ...

    class LabelledImages(Images): ...

    registry = DataCheckerRegistry()
    assert registry.find(LabelledImages) is DatasetChecker

    @registry.register(Images)
    class ImagesChecker(DatasetChecker): ...

    assert registry.find(LabelledImages) is registry.find(Images) is ImagesChecker

    @registry.register(LabelledImages)
    class LabelsChecker(DatasetChecker): ...

    assert registry.find(LabelledImages) is LabelsChecker
    assert registry.find(Images) is ImagesChecker


def test_registry_refuses_a_second_checker_for_a_type() -> None:
    registry = DataCheckerRegistry()
    registry.register(int)(DatasetChecker)
    with pytest.raises(KeyError, match="int is checked by DatasetChecker already"):
        registry.register(int)(DatasetChecker)
