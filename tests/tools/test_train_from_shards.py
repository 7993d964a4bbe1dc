"""A training from shards, local or in a store, ends bit by bit as one from class folders, also killed and resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from demo.drawing import DIGIT_CLASSES
from tests.shards import to_shards
from tests.store_server import serve
from tests.tools.test_exact_resume import CONFIGS, DEATH, EVERY_STEP, TASKS, assert_same_run

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def roots(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data root of each kind of the same images."""
    target = tmp_path_factory.mktemp("shards")
    for kind in ("cls", "zip"):
        for split in SPLITS:
            to_shards(kind, digits / "imagenet", target / kind, split, DIGIT_CLASSES)
    return {"folder": digits / "imagenet", "cls": target / "cls", "zip": target / "zip" / "set.zip"}


def train(
    tool: Any, folder: Path, root: Path | str, *flags: str, workers: int = 0, blocks: bool = False, **environment: str
) -> Any:
    config = folder.with_suffix(".py")
    settings = TASKS["classifier"].format(configs=str(CONFIGS), data="") + f"data_root = {str(root)!r}\n"
    settings += f"shard_cache = dict(folder={str(folder) + '_cache'!r}, size='9MB')\n"
    config.write_text(settings + EVERY_STEP + DEATH, encoding="utf-8")
    options = ["--cfg-options", f"train_dataloader.num_workers={workers}", "train_cfg.max_epochs=2"]
    if blocks:
        options += [f"{one}_dataloader.sampler.type=BlockShuffleSampler" for one in SPLITS]
        options += ["train_dataloader.sampler.open_shards=1"]
    return tool("train.py", config, "--work-dir", folder, *flags, *options, **environment)


def test_the_same_training(tool: Any, roots: dict[str, Path], tmp_path: Path) -> None:
    ended = train(tool, tmp_path / "folder", roots["folder"])
    assert ended.code == 0, ended.err
    with serve(roots["cls"]) as store:
        for kind, workers, root in (("cls", 1, roots["cls"]), ("zip", 0, roots["zip"]), ("store", 0, store.url)):
            ended = train(tool, tmp_path / kind, root, workers=workers)
            assert ended.code == 0, ended.err
            assert_same_run(tmp_path / kind, tmp_path / "folder")
    killed = train(tool, tmp_path / "killed", roots["cls"], workers=1, ASK_AT="7", ASK_BY="SIGKILL")
    assert killed.code != 0
    ended = train(tool, tmp_path / "killed", roots["cls"], "--resume", workers=1)
    assert ended.code == 0, ended.err
    assert_same_run(tmp_path / "killed", tmp_path / "folder")


def test_the_same_training_from_a_store(tool: Any, roots: dict[str, Path], tmp_path: Path) -> None:
    with serve(roots["cls"]) as store:
        local = train(tool, tmp_path / "local", roots["cls"], blocks=True)
        assert local.code == 0, local.err
        store.faults = ["503", "", "cut"]
        killed = train(tool, tmp_path / "store", store.url, workers=1, blocks=True, ASK_AT="7", ASK_BY="SIGKILL")
        assert killed.code != 0
        asked = len(store.gets)
        ended = train(tool, tmp_path / "store", store.url, "--resume", workers=1, blocks=True)
        assert ended.code == 0, ended.err
        assert len(store.gets) == asked  # all of it is in the cache
        assert_same_run(tmp_path / "store", tmp_path / "local")
        store.always = "403"
        refused = train(tool, tmp_path / "refused", store.url)
    assert refused.code == 2
    (line,) = [one for one in refused.err.splitlines() if "set-" in one]
    assert "access is refused, or credentials are missing (ClientResponseError: 403" in line


def test_a_dry_run_counts_the_images_of_a_store(tool: Any, roots: dict[str, Path], tmp_path: Path) -> None:
    with serve(roots["cls"]) as store:
        dry = train(tool, tmp_path / "run", store.url, "--dry-run")
    assert dry.code == 0, dry.err
    assert "2 epochs of 5 steps = 10 steps (40 images)" in dry.out
    assert "ABSENT" not in dry.out
    assert not (tmp_path / "run").exists()


def test_a_step_with_images_of_a_store_is_replayed(tool: Any, roots: dict[str, Path], tmp_path: Path) -> None:
    with serve(roots["cls"]) as store:
        config = (tmp_path / "run").with_suffix(".py")
        settings = TASKS["classifier"].format(configs=str(CONFIGS), data="") + f"data_root = {store.url!r}\n"
        settings += f"shard_cache = dict(folder={str(tmp_path / 'cache')!r}, size='9MB')\n"
        config.write_text(settings, encoding="utf-8")
        options = ["optim_wrapper.optimizer.lr=1e30", "batch.lr_rule=none", "train_dataloader.num_workers=0"]
        ended = tool("train.py", config, "--work-dir", tmp_path / "run", "--cfg-options", *options)
    assert ended.code == 3, ended.err
    (folder,) = (tmp_path / "run" / "nonfinite").iterdir()
    report = json.loads((folder / "report.json").read_text())
    paths = [sample["path"] for batch in report["by_rank"][0]["samples"] for sample in batch]
    assert len(paths) == 8
    assert all(re.fullmatch(rf"{re.escape(store.url)}/set-train-000\d\.tar/\S+\.png", path) for path in paths)
    replayed = tool("replay.py", folder)  # of what was recorded: the store is gone
    assert replayed.code == 0, replayed.err
    assert replayed.out.splitlines()[-1] == "reproduced"


def test_the_data_check_names_a_store_that_refuses(tool: Any, roots: dict[str, Path], tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    with serve(roots["cls"]) as store:
        store.always = "403"
        settings = TASKS["classifier"].format(configs=str(CONFIGS), data="") + f"data_root = {store.url!r}\n"
        config.write_text(settings + f"shard_cache = dict(folder={str(tmp_path)!r})\n", encoding="utf-8")
        checked = tool("check_data.py", config, "--json", tmp_path / "found.json")
    said = [one for one in (checked.out + checked.err).splitlines() if "access is refused" in one]
    assert (checked.code, len(said)) == (2, 1), checked.out + checked.err
    refusal = r"/set-(train|val)-0000\.tar: access is refused, or credentials are missing \(ClientResponseError: 403"
    assert re.search(refusal, said[0])
