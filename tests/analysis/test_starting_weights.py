"""What a training would begin with is loaded by a dry run too: it refuses files with the line of the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS

from analysis.dry_run import dry_run
from analysis.start_check import checked_plan
from backbones import UserError, build_backbone
from engine import run
from engine.config.building import build
from engine.config.load import load_config
from engine.config.world import Launch
from tests.bad_inputs.builders import CONFIG, FORMAT, contents

BACKBONE, MODEL = "model.backbone.weights", "load_from"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of the network of the digits' configs, and others."""
    folder = tmp_path_factory.mktemp("files")
    content: dict[str, Any] = {
        "network": {"state_dict": build_backbone("convnext_atto").state_dict()},
        "wider": {"state_dict": build_backbone("convnext_femto").state_dict()},
        "foreign": {"state_dict": {"encoder.weight": torch.zeros(3)}},
        "list": [1, 2],
    }
    content["lacking"] = {"state_dict": dict(list(content["network"]["state_dict"].items())[2:])}
    nan = {name: value.clone() for name, value in content["network"]["state_dict"].items()}
    nan["norm.weight"][3] = float("nan")
    content["nan"] = {"state_dict": nan}
    for task in CONFIG:
        cfg = load_config(CONFIG[task]).cfg
        content[task] = {"state_dict": build(MODELS, cfg.model, "model", cfg.default_scope).state_dict()}
    paths = {name: folder / f"{name}.pth" for name in (*content, "text", "damaged")}
    for name, value in content.items():
        torch.save(value, paths[name])
    paths["text"].write_text("These are notes about weights.\n")
    sound = bytearray(paths["network"].read_bytes())
    sound[len(sound) // 2] ^= 1
    paths["damaged"].write_bytes(sound)
    return paths


@pytest.fixture
def starts(digits: Path, tmp_path: Path) -> Callable[..., list[Callable[[], Any]]]:
    """A dry run and a training with some options, which end with an error or return lines."""

    def make(task: str, **options: Any) -> list[Callable[[], Any]]:
        common = {"data_root": str(digits / FORMAT[task]), "batch.size": 4, "train_dataloader.num_workers": 0}
        common |= {"val_dataloader.num_workers": 0, "work_dir": str(tmp_path / "run")}
        resolved = [load_config(CONFIG[task], common | options, Launch()) for _ in range(2)]
        return [
            lambda: dry_run(resolved[0], Launch()),
            lambda: run.train(resolved[1], Launch(), resume=False, make_plan=checked_plan),
        ]

    return make


@pytest.mark.parametrize(
    "task, key, name, needle",
    [
        ("classifier", BACKBONE, "wider", "is of another network: downsample_layers.0.0.weight is (48, 3, 4, 4)"),
        ("detector", BACKBONE, "wider", "is of another network: downsample_layers.0.0.weight is (48, 3, 4, 4)"),
        ("classifier", BACKBONE, "foreign", "encoder.weight"),
        ("classifier", BACKBONE, "list", "holds a list, not a mapping"),
        ("classifier", BACKBONE, "text", "damaged, or it holds more than data"),
        ("classifier", BACKBONE, "damaged", "is damaged: "),
        ("classifier", BACKBONE, "lacking", "lacks 2 of"),
        ("classifier", BACKBONE, "nan", "NaN or infinite values"),
        ("segmentor", MODEL, "detector", "is of another model"),
        ("classifier", MODEL, "list", "holds a list, not a mapping"),
    ],
)
def test_a_dry_run_and_a_start_refuse_a_file_alike(
    starts: Any, files: dict[str, Path], tmp_path: Path, task: str, key: str, name: str, needle: str
) -> None:
    lines = []
    for index, start in enumerate(starts(task, **{key: str(files[name])})):
        with pytest.raises(UserError) as caught:
            start()
        lines.append(str(caught.value))
        assert index or contents(tmp_path) == {}
    assert lines[0] == lines[1]
    assert needle in lines[0]
    assert len(lines[0].splitlines()) == 1


@pytest.mark.parametrize(
    "task, key, name, said",
    [
        (
            "classifier",
            BACKBONE,
            "network",
            "backbone: 126/126 backbone tensors loaded from {} (official layout); clas",
        ),
        ("classifier", BACKBONE, "classifier", "backbone: 126/126 backbone tensors loaded from {}"),
        ("detector", BACKBONE, "network", "backbone: 124/132 backbone tensors loaded from {}"),
        ("segmentor", BACKBONE, "segmentor", "backbone: 132/132 backbone tensors loaded from {}"),
        ("detector", MODEL, "detector", "model: "),
        ("segmentor", MODEL, "segmentor", "model: "),
    ],
)
def test_what_fits_is_said_as_the_start_says_it(
    starts: Any, files: dict[str, Path], task: str, key: str, name: str, said: str
) -> None:
    dry, _ = starts(task, **{key: str(files[name])})
    random = torch.get_rng_state()
    (line,) = (one for one in dry() if one.startswith(("backbone", "model")))
    assert line.startswith(said.format(files[name]))
    assert f"loaded from {files[name]}" in line
    assert torch.equal(random, torch.get_rng_state())


def test_a_mapping_of_the_head_without_a_file(starts: Any) -> None:
    dry, _ = starts("classifier", **{"model.head_mapping": list(range(10))})
    with pytest.raises(UserError, match="head_mapping takes rows of the head in"):
        dry()
