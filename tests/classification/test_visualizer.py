"""Colours of the classes below a classifier's picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement

from classification.visualizer import NO_TRUTH, RIGHT, WRONG, ClassificationVisualizer


@pytest.mark.parametrize(("label", "colours"), [(0, {RIGHT, WRONG}), (-1, {NO_TRUTH})], ids=["truth", "none"])
def test_green_is_for_what_is_known_to_be_right(label: int, colours: set[tuple[int, int, int]]) -> None:
    visualizer = ClassificationVisualizer(name=f"colours {label}")
    visualizer.dataset_meta = {"classes": ("newt", "toad", "frog")}
    sample = BaseDataElement(scores=torch.tensor([0.5, 0.3, 0.2]), gt_label=label)
    picture = visualizer.add_datasample("", np.zeros((320, 320, 3), np.uint8), sample, draw_gt=label >= 0)
    seen = {tuple(colour) for colour in picture[320:].reshape(-1, 3).tolist()}
    assert colours <= seen
    assert not seen & ({RIGHT, WRONG, NO_TRUTH} - colours - {NO_TRUTH})  # grey is also at the edges of white letters
