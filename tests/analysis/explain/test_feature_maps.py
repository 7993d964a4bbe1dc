"""Feature maps: the rule by which channels are chosen, and their colours."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from analysis.explain.feature_maps import choose_channels, map_picture


def test_channels_are_chosen_by_their_standard_deviation() -> None:
    maps = torch.randn(6, 4, 4)
    maps[2] *= 10
    maps[4] += 100  # far from zero, and varies as little as the others
    maps[5] = 50  # does not vary
    expected = sorted(range(6), key=lambda channel: -float(maps[channel].numpy().std()))
    assert choose_channels(maps, 6) == expected
    assert choose_channels(maps, 1) == [2]
    assert expected[-1] == 5


def test_colours_go_from_the_smallest_to_the_largest_value() -> None:
    ends = cv2.applyColorMap(np.array([[0, 255]], np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    picture = map_picture(torch.tensor([[-3.0, 5.0], [-3.0, 1.0]]))
    assert picture[0].tolist() == ends[0].tolist()
    assert picture[1, 0].tolist() == ends[0, 0].tolist()
    assert map_picture(torch.full((2, 2), 4.0))[0, 0].tolist() == ends[0, 0].tolist()
