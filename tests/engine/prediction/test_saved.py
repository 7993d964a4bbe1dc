"""Saved predictions: the scores from them are those of the test, to the last bit, without the network."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, DefaultScope, init_default_scope

import engine.run
from backbones.errors import ConfigError, DataError
from engine.config.building import build
from engine.config.load import load_config
from engine.config.world import Launch
from engine.prediction.saved import SavedPredictions, pack_fields, score_saved, unpack_fields
from engine.prediction.visualize import predict_batch
from tests.engine.prediction.test_predictor import CONFIGS, TASKS, small_settings


@pytest.fixture(params=TASKS)
def tested(request: pytest.FixtureRequest, digits: Path, tmp_path: Path) -> Iterator[Any]:
    """A random model's predictions of the test data, scored and saved at once."""
    before = dict(DefaultScope._instance_dict)
    name, data, _ = TASKS[request.param]
    cfg = load_config(
        CONFIGS / name, {"data_root": str(digits / data), "work_dir": str(tmp_path), **small_settings()}
    ).cfg
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model, dataset = build(MODELS, cfg.model, "model"), DATASETS.build(cfg.test_dataloader.dataset)
    collate = FUNCTIONS.get(cfg.test_dataloader.get("collate_fn", {"type": "pseudo_collate"})["type"])
    saved = SavedPredictions(cfg, tmp_path / "saved.zip")
    evaluator = Evaluator([cfg.test_evaluator, saved])
    evaluator.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        evaluator.process(data_samples=predict_batch(model, [dataset[index]], collate), data_batch=None)
    yield SimpleNamespace(cfg=cfg, scores=evaluator.evaluate(len(dataset)), path=saved.path)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def test_scores_are_exactly_those_of_the_test(tested: Any, tmp_path: Path) -> None:
    again, _ = score_saved(tested.cfg, tested.path)
    assert again == {name: float(value) for name, value in tested.scores.items()}
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".*.part"))
    tested.cfg.test_dataloader.dataset.metainfo.classes = ["a", "b"]
    with pytest.raises(DataError, match="has predictions of other classes than the config's"):
        score_saved(tested.cfg, tested.path)


def test_what_is_saved_comes_back_bit_by_bit() -> None:
    random = np.random.default_rng(0)
    fields = {
        "pred": {"masks": torch.from_numpy(random.random((3, 5, 7)) < 0.5), "boxes": torch.rand(3, 4)},
        "none": torch.zeros(0, 4),
        "label": 3,
        "loss": float("nan"),
    }
    found, path = unpack_fields(pack_fields(fields, "a/b.jpg"))
    assert path == "a/b.jpg"
    assert torch.equal(found["pred"]["masks"], fields["pred"]["masks"])
    assert torch.equal(found["pred"]["boxes"], fields["pred"]["boxes"])
    assert found["none"].shape == (0, 4)
    assert (found["label"], found["loss"] != found["loss"]) == (3, True)
    with pytest.raises(ConfigError, match="'x' of a prediction is a object, no array"):
        pack_fields({"x": object()}, "")


@pytest.mark.parametrize("content", [None, b"text", "zip"])
def test_another_file_is_named(content: Any, digits: Path, tmp_path: Path) -> None:
    name, data, _ = TASKS["classifier"]
    cfg = load_config(CONFIGS / name, {"data_root": str(digits / data), "work_dir": str(tmp_path)}).cfg
    path = tmp_path / "x.zip"
    if content == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a", "b")
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.zip: is no file of tools/test\.py --save-predictions$"):
        score_saved(cfg, path)


@pytest.mark.parametrize("part, content", [("about.json", "[]"), ("about.json", "{"), ("00000000.npz", "no array")])
def test_a_damaged_part_is_named(part: str, content: str, digits: Path, tmp_path: Path) -> None:
    name, data, _ = TASKS["classifier"]
    cfg = load_config(CONFIGS / name, {"data_root": str(digits / data), "work_dir": str(tmp_path)}).cfg
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    about = json.dumps({"classes": list(cfg.classes), "images": len(dataset)})
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for entry, text in {"about.json": about, part: content}.items():
            file.writestr(entry, text)
    with pytest.raises(DataError, match=r"x\.zip: (about\.json|entry 0) is damaged or absent: make the file anew with"):
        score_saved(cfg, tmp_path / "x.zip")


def test_a_test_that_fails_leaves_no_file(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, data, _ = TASKS["classifier"]
    resolved = load_config(CONFIGS / name, {"data_root": str(digits / data), "work_dir": str(tmp_path)})
    started = []

    def fail() -> None:
        started.extend(path.name for path in tmp_path.iterdir())
        raise DataError("an image is damaged")

    runner = SimpleNamespace(test=fail, test_loop=SimpleNamespace(evaluator=SimpleNamespace(metrics=[])))
    monkeypatch.setattr(engine.run, "_test_runner", lambda *_: runner)
    with pytest.raises(DataError, match="an image is damaged"):
        engine.run.test(resolved, Launch(), "a.pth", saved=tmp_path / "x.zip")
    assert started == [".x.zip.0.zip.part"]
    assert not list(tmp_path.iterdir())
