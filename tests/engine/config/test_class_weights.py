"""Weights of classes: by name, of the right number, and not those of the config that another is based on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbones.errors import ConfigError
from engine.config.class_weights import set_class_weights

NAMES = ("cup", "plate")


def weights(value: Any, background: int = 0, key: str = "class_weight", **loss: Any) -> tuple[Any, list[str]]:
    model = {"head": [{"num_classes": 2, "loss": {"type": "L", key: value, **loss}}], "rpn": {"loss": {key: [1.0]}}}
    notes: list[str] = []
    set_class_weights(model, NAMES, background, notes)
    assert model["rpn"] == {"loss": {key: [1.0]}}, "of no head with the classes"
    return model["head"][0]["loss"][key], notes


def test_weights_by_name_are_a_list_in_the_order_of_the_classes() -> None:
    assert weights({"plate": 0.5}) == ([1.0, 0.5], [])
    assert weights({"plate": 0.5}, background=1) == ([1.0, 0.5, 1.0], [])
    assert weights({"plate": 0.5}, background=1, use_sigmoid=True) == ([1.0, 0.5], [])
    assert weights([0.5, 2]) == ([0.5, 2], [])
    assert weights(0.25, key="alpha") == (0.25, [])


def test_weights_in_a_file_are_read_and_checked(tmp_path: Path) -> None:
    array, listed = tmp_path / "weights.npy", tmp_path / "weights.json"
    np.save(array, [0.5, 2.0])
    listed.write_text('{"plate": 0.5}', encoding="utf-8-sig")
    assert weights(str(array)) == ([0.5, 2.0], [])
    assert weights(str(listed)) == ([1.0, 0.5], [])
    np.save(array, [0.5, 2.0, 1.0])
    with pytest.raises(ConfigError, match=r"class_weight has 3 weights for 2 classes"):
        weights(str(array))
    for content in ("0.5", '"plate"'):
        listed.write_text(content)
        with pytest.raises(ConfigError, match="a list of 2 weights is needed"):
            weights(str(listed))
    for path in (tmp_path / "absent.npy", Path("balanced"), Path(__file__)):
        with pytest.raises(ConfigError, match=rf"{path.name}' cannot be read as .npy or JSON"):
            weights(str(path))


def test_one_weight_for_all_classes_follows_their_number() -> None:
    value, (note,) = weights([1.0] * 80 + [0.1], background=1)
    assert value == [1.0, 1.0, 0.1]
    assert note == "model.head.0.loss.class_weight: 1 for each of 2 classes, where it was for 80"
    for other in ([1.0, 0.1], [1.0, 2.0, 1.0, 0.1], [1.0]):
        with pytest.raises(ConfigError, match="weights for 2 classes and the background: give 3"):
            weights(other, background=1)


def test_weights_of_other_classes_are_left_out_and_said() -> None:
    value, (note,) = weights({"background": 0.1})
    assert value is None
    assert note == "model.head.0.loss.class_weight: weights of 'background', none of the classes, are left out"


@pytest.mark.parametrize(
    ("value", "key", "message"),
    [
        ([0.1] * 11, "class_weight", r"model\.head\.0\.loss\.class_weight has 11 weights for 2 classes: give 2"),
        ([0.1], "alpha", r"model\.head\.0\.loss\.alpha has 1 weights for 2 classes"),
        ({"plate": 1.0, "plates": 1.0}, "class_weight", "'plates' is none of the classes"),
        ([0.0, 0.0], "class_weight", "not all of them 0"),
        ([1.0, -1.0], "class_weight", "numbers from 0 up"),
        (["1", "1"], "class_weight", "numbers from 0 up"),
    ],
    ids=["digits", "focal", "typo", "zeros", "negative", "text"],
)
def test_wrong_weights_are_named(value: Any, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weights(value, key=key)


def test_a_softmax_of_a_detector_has_a_weight_for_the_background() -> None:
    with pytest.raises(ConfigError, match="has 2 weights for 2 classes and the background: give 3"):
        weights([1.0, 1.0], background=1)


def test_a_loss_of_queries_has_a_weight_for_no_object() -> None:
    model = {"head": {"num_classes": 2, "loss_cls": {"class_weight": [1.0, 1.0, 0.1]}}}
    set_class_weights(model, NAMES, 0, [])
    assert model["head"]["loss_cls"] == {"class_weight": [1.0, 1.0, 0.1]}


def test_queries_without_an_object_have_a_weight_by_name() -> None:
    head = {"num_classes": 2, "loss_cls": {"class_weight": {"no object": 0.1}}}
    set_class_weights({"decode_head": head}, ("a", "b"), 0, [])
    assert head["loss_cls"] == {"class_weight": [1.0, 1.0, 0.1]}
    other = {"num_classes": 2, "loss_decode": {"class_weight": {"a": 2.0, "no object": 0.1}}}
    with pytest.raises(ConfigError, match=r"loss_decode\.class_weight: 'no object' is none of the classes"):
        set_class_weights({"decode_head": other}, ("a", "b"), 0, [])
