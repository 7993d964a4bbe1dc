"""The steps of the demo: data, a classifier, and two tasks each from its backbone and from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.dataset import STAMP

DATA_ROOT = Path("data/digits")
CLASSIFICATION_CONFIG = "configs/classification/digits.py"
DETECTION_CONFIG = "configs/detection/mask_rcnn_digits.py"
SEGMENTATION_CONFIG = "configs/segmentation/upernet_digits.py"
# Of the steps on an Intel Xeon with AMX and 2 cores (2026-11-30); of two that run together, half of what both take.
DATA_SECONDS, CLASSIFIER_SECONDS, DETECTOR_SECONDS, SEGMENTOR_SECONDS = 12.0, 118.0, 62.0, 84.0
LOG_INTERVAL = 10  # optimizer steps: the 50 of the real configs would leave a few points of these short curves


@dataclass(frozen=True)
class Command:
    """A Python program of a step.

    Attributes:
        arguments: Arguments of the interpreter; ``{checkpoint of NAME}`` stands for the last checkpoint of a step.
        resumable: True if it continues from its last checkpoint with ``--resume``.
    """

    arguments: tuple[str, ...]
    resumable: bool = False


@dataclass(frozen=True)
class DemoStep:
    """A part of the demo that is run once.

    Attributes:
        name: Name of the step and of its folder.
        title: Short description for the reader of the report.
        commands: Programs in the order in which they run.
        config: Config file; the step runs again if its values change.
        inputs: Files; the step runs again if their content changes.
        outputs: Files; the step runs again if one is missing.
        beside_former: True if it runs at the same time as the step before it, where there are cores for both.
        seconds: Time of its programs where the others were measured, for the forecast; 0 where nobody has measured.
    """

    name: str
    title: str
    commands: tuple[Command, ...]
    config: str | None = None
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    beside_former: bool = False
    seconds: float = 0.0


def demo_steps(work_dir: Path, seed: int, options: Mapping[str, Sequence[str]] | None = None) -> list[DemoStep]:
    """The steps of the demo in order.

    Args:
        work_dir: Parent of the steps' folders.
        seed: Seed of the trainings; the data is always the same.
        options: Further ``key=value`` settings by config file: tests shorten the runs with them.
    """
    stamp = DATA_ROOT / STAMP
    # Other code may draw other data, although the command is the same.
    sources = tuple(Path(__file__).with_name(name) for name in ("drawing.py", "formats.py", "dataset.py"))
    make = Command(("tools/make_digits.py", "--root", str(DATA_ROOT)))
    data = DemoStep(
        "data",
        "Draw the data: handwritten digits on photographs",
        (make,),
        inputs=sources,
        outputs=(stamp,),
        seconds=DATA_SECONDS,
    )
    seconds = {
        CLASSIFICATION_CONFIG: CLASSIFIER_SECONDS,
        DETECTION_CONFIG: DETECTOR_SECONDS,
        SEGMENTATION_CONFIG: SEGMENTOR_SECONDS,
    }

    def training(name: str, title: str, config: str, backbone: str | None = None) -> DemoStep:
        folder, own = work_dir / name, (options or {}).get(config, ())
        settings = [f"randomness.seed={seed}", f"default_hooks.logger.interval={LOG_INTERVAL}", *own]
        if backbone:
            settings.append(f"model.backbone.weights={{checkpoint of {backbone}}}")
        place = ("--work-dir", str(folder))
        train = ("tools/train.py", config, *place, "--cfg-options", *settings)
        test = ("tools/test.py", config, f"{{checkpoint of {name}}}", *place, *(["--cfg-options", *own] if own else []))
        inputs = (stamp, work_dir / backbone / "done.json") if backbone else (stamp,)
        commands = (Command(train, True), Command(test))
        outputs, beside = (folder / "test.json",), name.endswith("_scratch")
        return DemoStep(name, title, commands, config, inputs, outputs, beside, seconds[config])

    detector, segmentor = "Train Mask R-CNN to find and outline digits", "Train UperNet to name every pixel"
    return [
        data,
        training("classifier", "Train the backbone to name digits", CLASSIFICATION_CONFIG),
        training("detector", f"{detector}, from that backbone", DETECTION_CONFIG, "classifier"),
        training("detector_scratch", "The same Mask R-CNN from scratch, for as long", DETECTION_CONFIG),
        training("segmentor", f"{segmentor}, from that backbone", SEGMENTATION_CONFIG, "classifier"),
        training("segmentor_scratch", "The same UperNet from scratch, for as long", SEGMENTATION_CONFIG),
    ]
