"""Two launchers on one machine, as on two: one is lost with its process, and the run goes on with one, then three."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from mmengine.dataset import DefaultSampler
from torch.utils.data import BatchSampler

from classification.data import FolderDataset
from demo.drawing import DIGIT_CLASSES
from tests.programs import PATIENCE, ROOT, environment
from tests.shards import to_shards
from tests.tools.test_exact_resume import CONFIGS, DEATH, EVERY_STEP, TASKS

BATCH, EPOCHS, KILLED_AFTER, KILLED_AGAIN_AFTER = 12, 4, 7, 9
# Each process writes the images of its steps beside the others. One that will be killed waits until all have done so.
NOTES = """
def _register_notes():
    import time
    from pathlib import Path
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    if "Notes" in HOOKS:
        return

    @HOOKS.register_module()
    class Notes(Hook):
        priority = "VERY_HIGH"  # before the process is killed

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            parts = data_batch if isinstance(data_batch, list) else [data_batch]
            names = [Path(name).name for part in parts for name in part["img_path"]]
            step, notes = str(runner.iter + 1), Path(os.environ["NOTES"])
            with notes.with_name("notes-" + os.environ.get("RANK", "0")).open("a") as file:
                print(step, *names, file=file)
            while os.environ.get("ASK_AT") == step and not all(
                any(line.startswith(step + " ") and line.endswith("\\n") for line in one.open())
                for one in map(notes.with_name, ("notes-0", "notes-1"))
            ):
                time.sleep(0.01)

_register_notes()
custom_hooks.append(dict(type="Notes"))
"""


def launch(
    config: Path, work: Path, *flags: str, machines: int = 2, processes: int = 1, **settings: str
) -> list[tuple[int, str]]:
    """Exit code and output of the launchers of some machines, with so many processes each."""
    port = str(20_000 + os.getpid() % 10_000)
    launchers = [
        subprocess.Popen(
            ["bash", "tools/dist_train.sh", str(config), str(processes), "--work-dir", str(work), *flags],
            cwd=ROOT,
            env=environment()
            | {"NNODES": str(machines), "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            | {"NOTES": str(work.with_name("notes"))}
            | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(machines)
    ]
    try:
        said = [one.communicate(timeout=PATIENCE)[0] for one in launchers]
    finally:
        for one in launchers:
            one.kill()
    return [(one.returncode, text) for one, text in zip(launchers, said)]


def images_by_step(folder: Path) -> dict[int, list[str]]:
    """Images that all processes had in each step; of a step that was taken twice each of both times."""
    found: dict[int, list[str]] = {}
    for file in folder.glob("notes-*"):
        for step, *names in map(str.split, file.read_text(encoding="utf-8").splitlines()):
            found.setdefault(int(step), []).extend(names)
    return found


def forget_notes(folder: Path) -> None:
    """Remove what processes have written about their steps."""
    for file in folder.glob("notes-*"):
        file.unlink()


def test_a_run_goes_on_in_its_order_after_a_machine_is_lost(tool: Any, digits: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shards = to_shards("cls", digits / "imagenet", tmp_path / "shards", split, DIGIT_CLASSES)
    config, work = tmp_path / "config.py", tmp_path / "work"
    settings = TASKS["classifier"].format(configs=str(CONFIGS), data="") + f"data_root = {str(shards)!r}\n"
    settings += "train_dataloader = dict(num_workers=0)\nrandomness = dict(seed=0)\n"
    settings += f"train_cfg = dict(max_epochs={EPOCHS})\nbatch = dict(size={BATCH})\n"
    config.write_text(settings + EVERY_STEP + DEATH + NOTES, encoding="utf-8")

    lost = launch(config, work, "--no-data-check", ASK_AT=str(KILLED_AFTER), ASK_BY="SIGKILL", ASK_RANK="1")
    assert all(code for code, _ in lost), lost
    before = images_by_step(tmp_path)
    assert max(before) == KILLED_AFTER
    forget_notes(tmp_path)
    again = ("--no-data-check", "--resume")
    death = {"ASK_AT": str(KILLED_AGAIN_AFTER), "ASK_BY": "SIGKILL", "NOTES": str(tmp_path / "notes")}
    alone = tool("train.py", config, "--work-dir", work, *again, **death)
    assert alone.code != 0
    between = images_by_step(tmp_path)
    assert max(between) == KILLED_AGAIN_AFTER
    forget_notes(tmp_path)
    ((code, text),) = launch(config, work, *again, machines=1, processes=3)
    assert code == 0, text
    assert len(list(tmp_path.glob("notes-*"))) == 3
    after = images_by_step(tmp_path)

    data: Any = FolderDataset(str(shards), "train", {"classes": DIGIT_CLASSES}, [])
    names = [Path(data.get_data_info(index)["img_path"]).name for index in range(len(data))]
    sampler, order = DefaultSampler(data, shuffle=True, seed=0), []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        order += [sorted(names[index] for index in batch) for batch in BatchSampler(sampler, BATCH, True)]
    for found, last in ((before, KILLED_AFTER), (between, KILLED_AGAIN_AFTER), (after, len(order))):
        first = min(found)  # the step of the last checkpoint that was written, plus one
        assert [sorted(found[step]) for step in range(first, last + 1)] == order[first - 1 : last]
    assert min(before) == 1 < min(between) <= KILLED_AFTER + 1
    assert min(between) <= min(after) <= KILLED_AGAIN_AFTER + 1
