"""Opening data sets of millions of images: time, memory of processes with workers, first batch after a resume.

The data is made up: the images of a classifier in parquet shards, whose bytes are one photograph each time, or COCO's
annotations without images. What is listed, opened and read is done as in a training; each measurement has processes
of its own.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from analysis.benchmark.memory import check_memory_is_told, process_memory
from analysis.benchmark.timing import WorkComparison
from backbones.errors import MachineError
from backbones.kernels.cpu.dispatch import cpu_name
from backbones.packages import is_absent, missing_package_error
from engine.data.sampling import build_train_loader

SHARDS, ANNOTATIONS = "shards", "annotations"
LARGE_IMAGES = {SHARDS: 14_197_122, ANNOTATIONS: 118_287}  # images of ImageNet-22K and of COCO's training
SMALL_IMAGES = 1_000  # images of a data set that costs nothing by its size
MADE_CLASSES = {SHARDS: 21_841, ANNOTATIONS: 80}
IMAGES_OF_A_SHARD = 3_467
IMAGES_OF_A_ROW_GROUP = 1_024
OBJECTS_OF_AN_IMAGE = 860_001 / 118_287
START_METHOD = "spawn"  # as of a program that is started anew
FORKED = {"multiprocessing_context": "fork"}  # start of workers, as in a training
RESUME_AT = 0.9  # of an epoch
BATCH_OF_A_PROCESS = 32
TABLE_SUFFIX = ".table"
TOUCHED_EVERY = 100  # images: every page of the tables is read then


@dataclass(frozen=True)
class LargeData:
    """A data set that is opened.

    Attributes:
        kind: ``shards`` or ``annotations``.
        images: Number of images.
        folder: Folder of the files.
        cache: Folder of the user's cache.
    """

    kind: str
    images: int
    folder: str
    cache: str

    def settings(self) -> dict[str, Any]:
        """Settings of the data set; images of annotations are not read."""
        settings: dict[str, Any]
        if self.kind == SHARDS:
            settings = {"type": "FolderDataset", "data_root": self.folder, "split": "train"}
            settings["pipeline"] = [{"type": "ClassificationTransform", "size": 224, "training": True}]
        else:
            settings = {"type": "mmdet.CocoInstances", "ann_file": str(annotation_file(self.folder)), "pipeline": []}
            settings["filter_cfg"] = {"filter_empty_gt": True, "min_size": 32}
        classes = min(MADE_CLASSES[self.kind], self.images)
        return settings | {"metainfo": {"classes": tuple(made_class(number) for number in range(classes))}}


@dataclass(frozen=True)
class OpenedMemory:
    """Memory of processes that have opened a data set, with their workers.

    Attributes:
        images: Number of images.
        rss: Resident bytes of all processes, added up: what they share counts in each.
        pss: The same where what ``n`` processes share counts as 1/n in each: what the machine has in use.
        table_rss: Resident bytes of the mapped tables alone.
        table_pss: PSS of the mapped tables alone.
    """

    images: int
    rss: int
    pss: int
    table_rss: int
    table_pss: int

    def __str__(self) -> str:
        shown = "RSS {:,.0f} MB, PSS {:,.0f} MB, of the mapped tables alone RSS {:,.0f} MB, PSS {:,.0f} MB"
        sizes = (self.rss, self.pss, self.table_rss, self.table_pss)
        return f"{self.images:,} images: {shown.format(*(size / 1e6 for size in sizes))}"


@dataclass(frozen=True)
class LargeDataResult:
    """Costs of a large data set.

    Attributes:
        place: Device and date, in words.
        megabytes: Size of the files, without images.
        processes: Number of processes.
        workers: Number of workers of each.
        large: Memory with the data set.
        small: Memory with one of ``SMALL_IMAGES`` images.
        comparisons: Elapsed and CPU seconds, each measured in turns, in one process.
    """

    place: dict[str, str]
    megabytes: float
    processes: int
    workers: int
    large: OpenedMemory
    small: OpenedMemory
    comparisons: tuple[WorkComparison, ...]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        content = vars(self) | {"large": vars(self.large), "small": vars(self.small)}
        return content | {"comparisons": [one.as_dict() for one in self.comparisons]}

    def as_text(self) -> str:
        """The result as lines for people."""
        more = (self.large.rss - self.small.rss) / 1e6, (self.large.pss - self.small.pss) / 1e6
        return "\n".join(
            [
                *(f"{key}: {value}" for key, value in self.place.items()),
                f"{self.processes} processes with {self.workers} workers each, which have read all of the tables; "
                f"{self.megabytes:,.0f} MB of files",
                f"  {self.large}",
                f"  {self.small}",
                "  the size costs RSS {:,.0f} MB, PSS {:,.0f} MB".format(*more),
                *(f"\n{one}" for one in self.comparisons),
            ]
        )


class TouchedData:
    """A data set of which each process reads all of the tables before its first sample, which is no image.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.touched = dataset, False

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> int:
        """The index itself."""
        if not self.touched:
            for touched in range(0, len(self.dataset), TOUCHED_EVERY):
                self.dataset.get_data_info(touched)
            self.touched = True
        return index


class MeasuringProcess:
    """A new process, used as a context: it ends when the block is left.

    Args:
        function: Picklable function that gets a connection.
    """

    def __init__(self, function: Callable[[Connection], None]) -> None:
        context: Any = multiprocessing.get_context(START_METHOD)
        self._connection, other = context.Pipe()
        self._process = context.Process(target=function, args=(other,))
        self._process.start()
        other.close()

    def __enter__(self) -> MeasuringProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it has ended
            self._connection.send("end")
        self._connection.close()
        self._process.join()

    def told(self) -> Any:
        """What the process sends next.

        Raises:
            MachineError: If it ends before.
        """
        try:
            return self._connection.recv()
        except EOFError as error:
            raise MachineError("a process that measured has ended: its error is above") from error

    def pids(self) -> list[int]:
        """Process ids of the process and its children."""
        pid = self._process.pid
        return [pid or 0, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())]


def measure_large_data(kind: str, images: int, processes: int, workers: int, rounds: int) -> LargeDataResult:
    """Make the data, then measure.

    Args:
        kind: ``shards`` or ``annotations``.
        images: Number of images.
        processes: Number of processes that open the data at once.
        workers: Number of workers of each.
        rounds: Number of turns of each side.

    Raises:
        MachineError: If pyarrow is not installed, of shards, or the system does not tell the memory.
    """
    check_memory_is_told("cpu")
    with tempfile.TemporaryDirectory() as folder:
        large, small = (made_data(kind, size, Path(folder, str(size))) for size in (images, min(images, SMALL_IMAGES)))
        comparisons = compare_opening(large, rounds)
        if kind == SHARDS:
            for count in dict.fromkeys((0, workers)):
                comparisons += compare_first_batches(large, small, count, rounds)
        costs = [opened_memory(one, processes, workers) for one in (large, small)]
        megabytes = sum(path.stat().st_size for path in Path(large.folder).rglob("*") if path.is_file()) / 1e6
    place = {"device": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores", "date": date.today().isoformat()}
    return LargeDataResult(place, megabytes, processes, workers, costs[0], costs[1], comparisons)


def made_class(number: int) -> str:
    """Name of a made-up class."""
    return f"n{number:08d}"


def annotation_file(folder: str) -> Path:
    """Made-up annotation file in a folder."""
    return Path(folder, "instances.json")


def made_data(kind: str, images: int, folder: Path) -> LargeData:
    """A made-up data set in a new folder."""
    files = folder / "data"
    files.mkdir(parents=True)
    if kind == SHARDS:
        make_parquet(files, images)
    else:
        make_annotations(annotation_file(str(files)), images)
    return LargeData(kind, images, str(files), str(folder / "cache"))


def make_parquet(folder: Path, images: int) -> None:
    """Write parquet shards in which each image is one photograph, which is stored once for a row group.

    Raises:
        MachineError: If pyarrow is not installed.
    """
    if is_absent("pyarrow"):
        raise missing_package_error("pyarrow", SHARDS)
    import pyarrow
    from pyarrow import parquet

    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photograph = io.BytesIO()
    Image.fromarray(pixels).resize((480, 360), Image.Resampling.BICUBIC).save(photograph, "JPEG")
    shards = -(-images // IMAGES_OF_A_SHARD)
    for shard in range(shards):
        numbers = range(shard, images, shards)  # so that each shard has images of many classes
        labels = [number % MADE_CLASSES[SHARDS] for number in numbers]
        paths = [f"{made_class(label)}_{number // MADE_CLASSES[SHARDS]}.JPEG" for label, number in zip(labels, numbers)]
        content = pyarrow.DictionaryArray.from_arrays(np.zeros(len(numbers), np.int32), [photograph.getvalue()])
        image = pyarrow.StructArray.from_arrays([content, pyarrow.array(paths)], ["bytes", "path"])
        parquet.write_table(
            pyarrow.table({"image": image, "label": labels}),
            folder / f"train-{shard:05d}-of-{shards:05d}.parquet",
            row_group_size=IMAGES_OF_A_ROW_GROUP,
            store_schema=False,  # which would have readers make dictionaries too
        )


def make_annotations(path: Path, images: int) -> None:
    """Write annotations with polygons in COCO's format and of its size."""
    random = np.random.default_rng(0)
    polygons = [json.dumps([random.uniform(0, 480, 2 * points).round(2).tolist()]) for points in range(4, 72)]
    objects = round(images * OBJECTS_OF_AN_IMAGE)
    owners = random.integers(0, images, objects).tolist()
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "images": [')
        for number in range(images):
            entry = {"license": 3, "file_name": f"{number:012d}.jpg", "height": 480, "width": 640, "id": number}
            entry |= {"date_captured": "2013-11-14 11:18:45", "coco_url": f"http://images.example/{number:012d}.jpg"}
            file.write((", " if number else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for number, owner in enumerate(owners):
            polygon, box = polygons[number % len(polygons)], [number % 301 + 0.25, number % 199 + 0.5, 150.75, 120.5]
            rest = {"area": number % 9973 + 50.125, "iscrowd": 0, "image_id": owner, "bbox": box}
            rest |= {"category_id": number % MADE_CLASSES[ANNOTATIONS], "id": number}
            file.write((", " if number else "") + f'{{"segmentation": {polygon}, {json.dumps(rest)[1:]}')
        categories = [{"id": one, "name": made_class(one)} for one in range(MADE_CLASSES[ANNOTATIONS])]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def compare_opening(data: LargeData, rounds: int) -> tuple[WorkComparison, ...]:
    """Seconds of opening a data set: for the first time, with the tables that this has made, and by mmdet."""
    sides = {"first use": partial(open_anew, data), "later": partial(open_data, data)}
    if data.kind == ANNOTATIONS:
        sides["mmdet"] = partial(open_by_mmdet, data)
    return compare_in_processes(f"opening {data.images:,} images of {data.kind}", sides, data, rounds)


def compare_first_batches(large: LargeData, small: LargeData, workers: int, rounds: int) -> tuple[WorkComparison, ...]:
    """Seconds of opening a data set and reading a batch at 90 % of an epoch, by some workers."""
    sides = {f"{data.images:,} images": partial(read_batch, data, workers) for data in (large, small)}
    work = f"opening, and a batch of {BATCH_OF_A_PROCESS} at 90 % of an epoch, {workers} workers"
    return compare_in_processes(work, sides, large, rounds)


def compare_in_processes(
    work: str, sides: dict[str, partial[object]], data: LargeData, rounds: int
) -> tuple[WorkComparison, ...]:
    """Elapsed and CPU seconds of each side, in turns, each time in a new process."""
    taken: dict[str, list[list[float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            with MeasuringProcess(partial(time_work, side, data)) as child:
                taken[name].append(child.told())
    return tuple(
        WorkComparison(
            f"{work}: {what}",
            "each in a new process that has imported what it needs",
            {name: tuple(one[place] for one in seconds) for name, seconds in taken.items()},
        )
        for place, what in enumerate(("elapsed time", "CPU time, with child processes"))
    )


def forget_tables(data: LargeData) -> None:
    """Remove the tables that were made of a data set."""
    shutil.rmtree(data.cache, ignore_errors=True)
    for table in Path(data.folder).glob(".shards-*.table"):
        table.unlink()


def open_anew(data: LargeData) -> Any:
    """Our data set, opened for the first time."""
    forget_tables(data)
    return open_data(data)


def open_data(data: LargeData) -> Any:
    """Our data set, opened."""
    dataset = DATASETS.build(data.settings())
    dataset.full_init()
    return dataset


def train_loader(data: LargeData, wrap: Callable[[Any], Any], **settings: Any) -> DataLoader:
    """Loader of a training that resumes."""
    settings |= {"dataset": data.settings(), "sampler": {"type": "DefaultSampler", "shuffle": True}}
    loader = build_train_loader(settings, 0, True, wrap)
    batches: Any = loader.batch_sampler
    batches.seek_batch(int(len(loader) * RESUME_AT))
    return loader


def read_batch(data: LargeData, workers: int) -> object:
    """First batch of a training that resumes."""
    settings = {"batch_size": BATCH_OF_A_PROCESS, "num_workers": workers}
    return next(iter(train_loader(data, lambda dataset: dataset, **settings, **(FORKED if workers else {}))))


def open_by_mmdet(data: LargeData) -> Any:
    """mmdet's data set on the same annotations, opened."""
    return DATASETS.build(data.settings() | {"type": "mmdet.CocoDataset", "data_prefix": {"img": ""}})


def time_work(work: partial[object], data: LargeData, parent: Connection) -> None:
    """In a process of its own: do some work, and tell the elapsed and the CPU seconds."""
    prepare_process(data)
    begin, cpu = time.perf_counter(), sum(os.times()[:4])
    work()
    parent.send([time.perf_counter() - begin, sum(os.times()[:4]) - cpu])


def prepare_process(data: LargeData) -> None:
    """Import what data sets need, as a training has before it opens them, and take the folder of tables."""
    os.environ["XDG_CACHE_HOME"] = data.cache
    torch.set_num_threads(1)
    for package in ("classification", "pyarrow.parquet") if data.kind == SHARDS else ("detection",):
        import_module(package)


def opened_memory(data: LargeData, processes: int, workers: int) -> OpenedMemory:
    """Memory of processes with workers, all of which have read all of the tables.

    Raises:
        MachineError: If a process fails.
    """
    with ExitStack() as stack:
        hold = partial(open_and_hold, data, workers)
        children = [stack.enter_context(MeasuringProcess(hold)) for _ in range(processes)]
        for child in children:
            child.told()
        pids = [pid for child in children for pid in child.pids()]
        sizes = [process_memory(pid) + process_memory(pid, TABLE_SUFFIX) for pid in pids]
    return OpenedMemory(data.images, *map(sum, zip(*sizes)))


def open_and_hold(data: LargeData, workers: int, parent: Connection) -> None:
    """In a process of its own: read a batch by each worker, each of which reads all of the tables, and wait."""
    prepare_process(data)
    loader: Any = train_loader(data, TouchedData, batch_size=1, num_workers=workers, **FORKED)
    reading = iter(loader)
    for _ in range(workers):  # batches come from the workers in turns
        next(reading)
    loader.dataset[0]
    parent.send("opened")
    with suppress(EOFError):
        parent.recv()
