"""Evaluation of one trained model on many sets of images, each of which is kept when it is done."""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, broadcast_object_list, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from backbones.errors import UserError
from engine.config.building import building
from engine.config.datasets import inner_datasets
from engine.config.fingerprint import make_fingerprint
from engine.data.preflight import dataset_paths
from engine.report.html import duration
from engine.report.run_dir import read_json, write_json
from engine.task import ImageSet
from engine.training.loaders import workers_ended
from engine.training.runner import Runner

SETS_FOLDER = "sets"
MAX_WORST = 4  # images of a set that its pictures show
FILE_KEYS = ("img_path", "seg_map_path")


@dataclass(frozen=True)
class SetResult:
    """Result on a set of images.

    Attributes:
        name: Name of the set.
        digest: Digest of the weights, the data and all settings that the result depends on.
        metrics: Metrics by name.
        details: Further data that the metric keeps, such as the worst images.
        images: Number of images.
        seconds: Duration.
    """

    name: str
    digest: str
    metrics: dict[str, float]
    details: dict[str, Any]
    images: int
    seconds: float


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names and values of all tensors of a model, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def files_stamp(paths: Iterable[Path], dataset: Any) -> str:
    """Digest of name, size and time of the files that a data set reads: annotations, images, and label maps.

    Args:
        paths: Files and folders that its settings name. The time of a folder counts only where the samples name no
            files: it tells nothing of what lies in its folders, and changes with what is none of the data.
        dataset: The data set.
    """
    listing = hasattr(dataset, "get_data_info")
    samples = [dataset.get_data_info(index) for index in range(len(dataset))] if listing else []
    named = [sample[key] for sample in samples for key in FILE_KEYS if sample.get(key)]
    digest = hashlib.sha256()
    for path in (*(str(path) for path in paths if path.is_file() or not named), *named):
        stat = os.stat(path) if os.path.exists(path) else None
        digest.update(f"{path}\n{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


class Progress:
    """A bar over all sets on a terminal, elsewhere a line for each set; both say how much time is left.

    Args:
        sets: Number of sets.
    """

    def __init__(self, sets: int) -> None:
        self.sets, self.done, self.evaluated, self.started = sets, 0, 0, time.monotonic()
        self._main = is_main_process()
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} sets [{elapsed}<{remaining}]"
        hidden = not (self._main and sys.stderr.isatty())
        self._bar: tqdm[Any] = tqdm(
            desc="robustness", total=sets, bar_format=layout, dynamic_ncols=True, disable=hidden
        )

    def begin(self, name: str) -> None:
        """Name the set that is being evaluated."""
        self._bar.set_description(name)

    def advance(self, fraction: float) -> None:
        """Advance by a fraction of a set."""
        self._bar.update(fraction)

    def finish(self, line: str, reused: bool) -> None:
        """Count a set; show its line where there is no bar."""
        self.done += 1
        self.evaluated += not reused
        self._bar.n = self.done
        left = ""
        if self.evaluated and self.done < self.sets:
            each = (time.monotonic() - self.started) / self.evaluated
            left = f", about {duration(each * (self.sets - self.done))} left"
        self.say(f"[{self.done}/{self.sets}] {line}{left}")

    def say(self, line: str) -> None:
        """Show a line, above the bar if there is one."""
        if self._main and not self._bar.disable:
            tqdm.write(line, file=sys.stderr)
        elif self._main:
            print(line, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


class SetEvaluator:
    """Evaluates a model on sets of images.

    Args:
        cfg: Resolved config, with the pipeline and model of test-time augmentation where that is used.
        model: The model on its device, in evaluation mode.
        folder: Folder of the results.
        settings: Settings that the results depend on beside weights, model and data.
    """

    def __init__(self, cfg: Config, model: nn.Module, folder: Path, settings: Mapping[str, Any]) -> None:
        self.cfg, self.model, self.folder = cfg, model, folder
        self.half = bool((cfg.get("test_cfg") or {}).get("fp16", False))
        self.digest = make_fingerprint(weights_digest(model), cfg.model.to_dict(), dict(settings), self.half)
        self._stamps: dict[str, str] = {}
        MMLogger.get_current_instance().setLevel(logging.ERROR)  # metrics print no tables, and no remarks on prefixes

    def evaluate_all(self, sets: Sequence[ImageSet], progress: Progress, show: Callable[[SetResult], str]) -> Any:
        """Evaluate sets, or take their results where they are kept already.

        Args:
            sets: The sets.
            progress: Receives what is done.
            show: Returns the scores of a result as text.

        Returns:
            Results by the names of the sets.
        """
        results: dict[str, SetResult] = {}
        for one in sets:
            progress.begin(one.name)
            digest, kept, differs = self._kept(one)
            if differs:
                progress.say(f"{one.name}: the result that is there is of other weights, data or settings: made again")
            results[one.name] = kept or self._evaluate(one, digest, progress.advance)
            result = results[one.name]
            how = "kept from before" if kept else f"{result.images:,} images in {duration(result.seconds)}"
            progress.finish(f"{one.name}: {show(result)} ({how})", reused=kept is not None)
        return results

    def file(self, name: str) -> Path:
        """File of the result of a set."""
        return self.folder / SETS_FOLDER / f"{name}.json"

    def loader(self, one: ImageSet) -> DataLoader:
        """Data loader of a set, with the settings of the test data's."""
        settings = copy.deepcopy(self.cfg.test_dataloader)
        settings.dataset = ConfigDict(copy.deepcopy(dict(one.dataset)))
        place = "test_dataloader"
        # COCO's readers announce each of the many readings.
        with redirect_stdout(io.StringIO()), building({place: settings}, place):
            return Runner.build_dataloader(settings, seed=self.cfg.get("randomness", {}).get("seed") or 0)

    def _digest(self, one: ImageSet) -> str:
        evaluator = one.evaluator or self.cfg.test_evaluator
        return make_fingerprint(self.digest, dict(one.dataset), self._files(one), evaluator)

    def _files(self, one: ImageSet) -> str:
        """Stamp of the files of a set, which those with the same images in other pipelines share."""
        images = ConfigDict(copy.deepcopy(dict(one.dataset)))
        for inner in inner_datasets(images):
            inner.pop("pipeline", None)
        key = make_fingerprint(images)
        if key not in self._stamps:
            self._stamps[key] = files_stamp(dataset_paths(images), self.loader(one).dataset)
        return self._stamps[key]

    def _kept(self, one: ImageSet) -> tuple[str, SetResult | None, bool]:
        """Digest of a set, its earlier result, and whether there is one of something else; the same in all processes.

        The main process alone decides: another machine may see other times of the same files.
        """
        found: list[Any] = [None]
        if is_main_process():
            try:
                digest = self._digest(one)
            except UserError:  # all processes raise it when they evaluate the set
                digest = ""
            file = self.file(one.name)
            found = [(digest, read_json(file) if file.is_file() else None)]
        broadcast_object_list(found)
        digest, content = found[0]
        if content is None:
            return digest, None, False
        if content.get("digest") != digest or set(content) != set(SetResult.__dataclass_fields__):
            return digest, None, True
        return digest, SetResult(**content), False

    @torch.no_grad()
    def _evaluate(self, one: ImageSet, digest: str, advance: Callable[[float], None]) -> SetResult:
        started = time.monotonic()
        loader = self.loader(one)
        metrics_cfg, place = one.evaluator or self.cfg.test_evaluator, "test_evaluator"
        with building({place: metrics_cfg}, place):
            evaluator = Evaluator(copy.deepcopy(metrics_cfg))
        dataset: Any = loader.dataset
        evaluator.dataset_meta = dataset.metainfo
        for metric in evaluator.metrics:
            if hasattr(metric, "worst_kept"):  # one that can tell the worst images
                metric.worst_kept = MAX_WORST
        device = next(self.model.parameters()).device.type
        with workers_ended([loader]), torch.autocast(device, enabled=self.half):
            for batch in loader:
                samples = self.model.test_step(batch)  # type: ignore[operator]
                evaluator.process(data_samples=samples, data_batch=batch)
                advance(1 / len(loader))
            with redirect_stdout(io.StringIO()):
                metrics = evaluator.evaluate(len(dataset))
        details: dict[str, Any] = {}
        for metric in evaluator.metrics:
            details |= getattr(metric, "details", None) or {}
        plain = {name: float(value) for name, value in metrics.items()}
        result = SetResult(one.name, digest, plain, details, len(dataset), time.monotonic() - started)
        if is_main_process():
            write_json(self.file(one.name), asdict(result))
        barrier()
        return result
