"""The folder of a training: what later programs leave as it is, a second training in it, a finished one, its curves."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from backbones.files import PART_SUFFIX
from engine.config.load import load_config
from tests.pages import Page

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/classification/digits.py"
MADE_ANEW = {"report.html"}  # from the files of the folder


def settings(digits: Path, epochs: int = 1) -> list[str]:
    options = [f"data_root={digits / 'imagenet'}", "batch.size=8", "default_hooks.logger.interval=1"]
    return [
        *options,
        f"train_cfg.max_epochs={epochs}",
        f"param_scheduler.1.T_max={epochs}",
        "param_scheduler.1.begin=0",
    ]


@pytest.fixture(scope="module")
def original(tool: Any, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished training, and what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    ended = tool("train.py", CONFIG, "--work-dir", folder, "--cfg-options", *settings(digits))
    assert ended.code == 0, ended.err
    return folder, ended.out


@pytest.fixture
def finished(original: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished training."""
    return Path(shutil.copytree(original[0], tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in MADE_ANEW}


def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_a_training_names_its_results_and_the_next_command(original: tuple[Path, str], tool: Any) -> None:
    folder, out = original
    *_, results, following = out.splitlines()
    best = folder / "best_top1.pth"
    assert results == f"report {folder / 'report.html'}, last checkpoint {folder / 'epoch_1.pth'}, best {best}"
    assert following == f"next: python tools/test.py {folder / 'digits.py'} {best}"


def test_what_comes_later_leaves_a_training_as_it_is(finished: Path, tool: Any, digits: Path, tmp_path: Path) -> None:
    data = f"data_root={digits / 'imagenet'}"
    place = ("--work-dir", finished, "--cfg-options", data)
    training = ("--work-dir", finished, "--cfg-options", *settings(digits))
    image = next((digits / "imagenet/val").glob("*/*.png"))
    here = ("--cfg-options", data, f"work_dir={finished}")
    checked = tmp_path / "data"
    shutil.copytree(digits / "imagenet", checked)
    next((checked / "train").glob("*/*.png")).write_bytes(b"")
    before = contents(finished)
    for code, program, *arguments in (
        (0, "test.py", CONFIG, finished / "epoch_1.pth", *place),
        (0, "test.py", finished / "digits.py", finished / "epoch_1.pth", "--ema", *place),
        (0, "predict.py", CONFIG, finished / "epoch_1.pth", image, *here),
        (1, "check_data.py", CONFIG, "--cfg-options", f"data_root={checked}", f"work_dir={finished}"),
        (0, "train.py", CONFIG, "--dry-run", *training),
        (2, "train.py", CONFIG, *training),
        (0, "train.py", CONFIG, "--resume", *training),
    ):
        ended = tool(program, *arguments)
        assert ended.code == code, (program, ended.err)
        now = contents(finished)
        assert {name: now.get(name) for name in before} == before, program
    added = {name.partition("/")[0] for name in set(now) - set(before)}
    assert added == {
        *("test.json", "test_ema.json", "test_data_check.json", "test", "pictures", "predictions", "check_data.json")
    }
    assert [name for name in sorted(now) if "confusion" in name] == ["confusion.json", "test/confusion.json"]
    assert load_config(finished / "test/digits.py", training=False).cfg.work_dir == str(finished)


def test_the_resolved_config_is_trained_again_after_a_test(
    finished: Path, original: tuple[Path, str], tool: Any, digits: Path, tmp_path: Path
) -> None:
    tested = tool("test.py", CONFIG, finished / "epoch_1.pth", "--work-dir", finished, *settings_of_test(digits))
    assert tested.code == 0, tested.err
    again = tool("train.py", finished / "digits.py", "--work-dir", tmp_path / "again")
    assert again.code == 0, again.err
    curves = [
        [json.loads(line) for path in folder.glob("*/vis_data/scalars.json") for line in path.open()]
        for folder in (original[0], tmp_path / "again")
    ]
    losses = [[line["loss"] for line in lines if "lr" in line] for lines in curves]
    assert losses[0] == losses[1]


def settings_of_test(digits: Path) -> list[str]:
    return ["--cfg-options", f"data_root={digits / 'imagenet'}"]


def test_a_second_training_is_refused_before_anything_is_checked(finished: Path, tool: Any, digits: Path) -> None:
    before = contents(finished)
    arguments = ("train.py", CONFIG, "--work-dir", finished)
    refused = tool(*arguments, "--cfg-options", "data_root=nowhere")
    line = f"work directory {str(finished)!r} holds a training (best_top1.pth): go on with --resume, or give another "
    assert (refused.code, refused.err) == (2, f"error: {line}folder with --work-dir\n")
    planned = tool(*arguments, "--dry-run", "--cfg-options", *settings(digits))
    assert planned.out.endswith(f"note: {line}folder with --work-dir\n")
    assert contents(finished) == before
    # A process that the launcher starts again goes on.
    restarted = tool(*arguments, "--cfg-options", *settings(digits), TORCHELASTIC_RESTART_COUNT="1")
    assert (restarted.code, restarted.out[:15]) == (0, "finished before")


def test_a_start_that_has_saved_nothing_is_started_again(tool: Any, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    place = ("--work-dir", folder, "--cfg-options")
    first = tool("train.py", CONFIG, *place, *settings(digits), "train_dataloader.num_workers=0", "load_from=no.pth")
    assert first.code == 2
    # It ends in its third step, before there is a checkpoint.
    broken = ("optim_wrapper.optimizer.lr=1e30", "param_scheduler=None", "env_cfg.nonfinite=stop")
    second = tool("train.py", CONFIG, *place, *settings(digits), *broken)
    assert second.code not in (0, 2) or "finite" in second.err, second.err
    assert list((folder / "nonfinite").iterdir())
    assert "not finite at" in page(folder).words
    third = tool("train.py", CONFIG, *place, *settings(digits))
    assert third.code == 0, third.err
    words = page(folder).words
    assert "Finished at step 5 of 5." in words
    assert "not finite at" not in words, "of the start before, which left no checkpoint"


def test_a_finished_training_says_so_and_is_trained_longer_on_request(finished: Path, tool: Any, digits: Path) -> None:
    def resume(epochs: int) -> Any:
        ended = tool("train.py", CONFIG, "--resume", "--work-dir", finished, "--cfg-options", *settings(digits, epochs))
        assert ended.code == 0, ended.err
        return ended

    partial = finished / f".report.html.0123456789abcdef{PART_SUFFIX}"
    partial.touch()  # as a start that was killed while it wrote leaves it
    (line,) = resume(1).out.splitlines()
    assert not partial.exists()
    assert line.startswith(f"finished before, after 1 epoch; report {finished / 'report.html'}, last checkpoint ")
    assert line.endswith("to train longer: --resume --cfg-options train_cfg.max_epochs=N with N above 1")
    longer = resume(2).out
    assert "Epoch(train) [2][5/5]" in longer
    words = shlex.split(longer.splitlines()[-1])
    assert words[:2] == ["next:", "python"]
    following = tool(Path(words[2]).name, *words[3:])
    assert following.code == 0, following.err
    assert f"in {finished}: test" in following.out
    assert "nothing to go on from" not in following.out  # the training's config says that it was resumed
    assert (finished / ("test_ema.json" if "--ema" in words else "test.json")).is_file()
    assert "Epoch" not in resume(2).out
    curves = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert [point.step for point in curves.Scalars("loss")] == list(range(1, 11))
    (finished / "last_checkpoint").unlink()
    for file in finished.glob("*.pth"):
        file.unlink()
    assert "beginning at the start" in resume(1).out


def test_steps_that_are_done_again_are_one_line_of_tensorboard(finished: Path, tool: Any, digits: Path) -> None:
    arguments = ("train.py", CONFIG, "--resume", "--work-dir", finished, "--cfg-options", *settings(digits, 3))
    assert tool(*arguments).code == 0
    (finished / "epoch_3.pth").unlink()
    starts = json.loads((finished / "starts.json").read_text())
    starts["starts"][-1]["outcome"] = "running"  # as after a power failure
    (finished / "starts.json").write_text(json.dumps(starts))
    again = tool(*arguments)
    assert third_epoch(again.out) == [11, 12, 13, 14, 15]
    curves = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert [point.step for point in curves.Scalars("loss")] == list(range(1, 16))
    assert len(list(finished.glob("tensorboard/*"))) > 2


def third_epoch(out: str) -> list[int]:
    found = [line.partition("Epoch(train) [3][")[2] for line in out.splitlines() if "Epoch(train) [3][" in line]
    return [10 + int(line.partition("/")[0]) for line in found]


def test_a_test_of_another_trainings_checkpoint_is_marked(
    finished: Path, original: tuple[Path, str], tool: Any, digits: Path, tmp_path: Path
) -> None:
    own = tool("test.py", CONFIG, finished / "epoch_1.pth", "--work-dir", finished, *settings_of_test(digits))
    assert own.code == 0, own.err
    assert "of another training" not in page(finished).words
    other = tmp_path / "other"
    options = [*settings(digits), "randomness.seed=1"]
    assert tool("train.py", CONFIG, "--work-dir", other, "--cfg-options", *options).code == 0
    tested = tool("test.py", CONFIG, other / "epoch_1.pth", "--ema", "--work-dir", finished, *settings_of_test(digits))
    assert tested.code == 0, tested.err
    words = page(finished).words
    assert words.count("test, EMA of another training") >= 2
    assert "In the test, EMA of another training." in words  # the pictures
    assert "test of another training" not in words
