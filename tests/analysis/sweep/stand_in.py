"""Stands in for a training: the files, exit codes and signals of one, at no cost.

The score is ``10 - |log10(rate) + 2| + seed / 100``, less one for each missing epoch of ``EPOCHS``. The rate also says
what goes wrong: 7 is not finite, 8 is bad input, 9 is killed in its first start. After each epoch it waits until it is
told to stop, or until the file ``STAND_IN_WAITS_FOR`` exists.
"""

import json
import os
import signal
import sys
import time
from math import log10
from pathlib import Path

EPOCHS = 4
SECONDS = float(os.environ.get("STAND_IN_SECONDS", "0.02"))  # of an epoch
WAITS_FOR = os.environ.get("STAND_IN_WAITS_FOR")
stopped = []


def main() -> int:
    folder = Path(sys.argv[sys.argv.index("--work-dir") + 1])
    options = dict(text.split("=", 1) for text in sys.argv[sys.argv.index("--cfg-options") + 1 :] if "=" in text)
    rate, seed = float(options["optim_wrapper.optimizer.lr"]), int(options["randomness.seed"])
    epochs = int(options.get("train_cfg.max_epochs", EPOCHS))
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    saved = [int(file.stem.removeprefix("epoch_")) for file in folder.glob("epoch_*.pth")]
    assert bool(saved) == ("--resume" in sys.argv), "a training is resumed if it has begun, and only then"
    done = max(saved, default=0)
    with (folder.parents[2] / "ledger").open("a") as ledger:
        ledger.write(f"{folder.parent.name}/{folder.name} {done} {epochs} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    if rate == 8:
        print("error: no image in data/nowhere: link it there", file=sys.stderr)
        return 2
    name = f"start_{len(list(folder.glob('start_*')))}"
    scalars = folder / name / "vis_data/scalars.json"
    scalars.parent.mkdir(parents=True)
    starts = folder / "starts.json"
    before = json.loads(starts.read_text())["starts"] if starts.exists() else []
    start = {"folder": name, "resumed": done > 0, "from_step": done, "of_steps": epochs, "seconds": 0.0, "processes": 1}
    schedule = {"epochs": epochs, "steps": epochs, "steps_per_epoch": 1}
    write(folder / "plan.json", {"schedule": schedule, "batch": {"global_batch": 8}})
    write(starts, {"starts": [*before, start]})
    while done < epochs and not stopped:
        time.sleep(SECONDS)
        if rate == 7:
            print("\x1b[31merror: the loss is nan in step 1\x1b[0m")
            return 3
        if rate == 9 and done == 1 and not before:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        score = 10 - abs(log10(rate) + 2) + seed / 100 - max(0, EPOCHS - done)
        with scalars.open("a") as file:
            file.write(json.dumps({"lr": rate, "loss": 1.0, "time": SECONDS, "step": done}) + "\n")
            file.write(json.dumps({"top1": score, "step": done}) + "\n")
        write(folder / f"epoch_{done}.pth", {})
        while WAITS_FOR and not stopped and not os.path.exists(WAITS_FOR):
            time.sleep(0.01)
    if stopped and done < epochs:
        return 75
    write(starts, {"starts": [*before, {**start, "outcome": "finished", "to_step": done, "ended": "now"}]})
    write(folder / "run_id", 1)
    (folder / "last_checkpoint").write_text(f"epoch_{done}.pth")
    return 0


def write(file: Path, content: object) -> None:
    part = file.with_suffix(".tmp")
    part.write_text(json.dumps(content))
    part.replace(file)


if __name__ == "__main__":
    sys.exit(main())
