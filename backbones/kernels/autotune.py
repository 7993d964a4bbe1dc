"""Select the fastest of several forms of an operation: measured once on this device, then remembered.

A :class:`TuningKey` names the operation, the device, the precision, what is fixed in a network (channels, kernel size,
whether it trains) and the size of the map as a power of two. The selected form is taken, in this order, from what the
user forced, from this process, from a file in the user's cache directory (``XDG_CACHE_HOME``, else ``~/.cache``; one
file for each combination of versions of PyTorch, Triton and these kernels), and from measuring the candidates in turns
on the present tensors. A form is forced by :meth:`Autotuner.use` or by the environment:
``CONVNEXT_CHOICE="dwconv_norm=plain,mlp=fused"``, read when this module is imported.

Nothing is measured while a graph is traced or captured, under a dispatch mode, or on tensors without content: then the
form of the nearest size, or the first candidate, is selected. With ``torch.use_deterministic_algorithms`` it is always
the first, so that a run does not depend on an earlier one; likewise within :meth:`Autotuner.without_measuring`, where
trainings on a CPU take place.

Several processes may select different forms, and may do so safely: candidates differ in the last bits of a process's
own activations alone, never in shapes or in what is communicated, and gradients are averaged before any parameter is
updated, so that replicas stay equal. Waiting for rank 0 would put a collective into a forward pass that not every rank
may run. Processes of one machine share the file; a process that finds a form there after measuring uses that one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import is_in_torch_dispatch_mode  # the function has no public name

from backbones.errors import ConfigError
from backbones.files import SharedFolderError, atomic_write, check_private_folder, read_private

VARIABLE = "CONVNEXT_CHOICE"
TIMING_ROUNDS = 7
TIMING_ROUND_SECONDS = 2e-3  # a call is repeated until a round lasts about this long
MAX_REPEATS = 50
MAX_FILE_BYTES = 2**24
REQUIRED_RATIO = 0.97  # of the first candidate's time: slower candidates are not preferred to it

Candidates = Mapping[str, Callable[[], object]]


class TuningKey(NamedTuple):
    """What a selection depends on.

    Attributes:
        operation: Name of the operation, also used to force a form.
        device: Name of the device.
        dtype: Precision of the map.
        static: Numbers that are fixed in a network, such as channels.
        log2_size: Number of elements of the map as a power of two, rounded down.
    """

    operation: str
    device: str
    dtype: str
    static: tuple[int, ...]
    log2_size: int

    @classmethod
    def of_tensor(
        cls, operation: str, x: Tensor, static: tuple[int, ...] = (), dtype: torch.dtype | None = None
    ) -> TuningKey:
        """The key of an operation on a tensor; ``dtype`` where it computes in another precision than the tensor's."""
        return cls(operation, device_name(x.device), str(dtype or x.dtype), static, x.numel().bit_length() - 1)

    def to_text(self) -> str:
        """The key as it stands in the file."""
        static = ",".join(map(str, self.static))
        return "|".join([self.operation, self.device, self.dtype, static, str(self.log2_size)])


@functools.cache
def device_name(device: torch.device) -> str:
    """Name of a device; for CPUs with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.machine()} {platform.processor()} {os.cpu_count()} cores {torch.get_num_threads()} threads"
    return device.type


class Autotuner:
    """Selects forms of operations and remembers the selections of this process.

    Args:
        forced: Forms that the user forces, by operation.

    Attributes:
        selected: Forms that were measured or read from the file, by key.
    """

    def __init__(self, forced: Mapping[str, str]) -> None:
        self.selected: dict[TuningKey, str] = {}
        self._forced = dict(forced)
        self._entries: dict[str, str] = {}  # of the file, by the text of a key
        self._predicted: dict[TuningKey, str] = {}  # selected without measuring
        self._files_read: set[Path] = set()
        self._measures = True

    @contextmanager
    def use(self, **forms: str) -> Iterator[None]:
        """Force forms of operations within the context, such as ``dwconv_norm="plain"``."""
        before = self._forced
        self._forced = before | forms
        try:
            yield
        finally:
            self._forced = before

    @contextmanager
    def without_measuring(self) -> Iterator[None]:
        """Select the first candidate within the context, regardless of earlier measurements.

        A run on a CPU is then the same bit by bit when it is repeated: it does not depend on how busy the machine was.
        """
        before, self._measures = self._measures, False
        try:
            yield
        finally:
            self._measures = before

    def measures(self) -> bool:
        """Whether selections may depend on measurements."""
        return self._measures and not torch.are_deterministic_algorithms_enabled()

    def forced(self, operation: str) -> str | None:
        """The form that the user forces for an operation, if any."""
        return self._forced.get(operation)

    def select(self, key: TuningKey, candidates: Candidates, x: Tensor) -> str:
        """Name of the candidate to use.

        Args:
            key: Operation, device, precision and size.
            candidates: Forms that compute the same, the expected best first. They are called without arguments, many
                times, and must have no side effects: no gradient in a parameter and no changed buffer.
            x: One of their tensors; its device determines how time is measured.

        Raises:
            ConfigError: If the forced form is none of the candidates.
        """
        if key.operation in self._forced or not self.measures():
            return self.predict(key, candidates)
        if (known := self.selected.get(key, "")) in candidates:
            return known
        if not is_measurable(x):
            return self.predict(key, candidates)
        self._read_file()
        form = self._entries.get(key.to_text(), "")
        if form not in candidates:
            form = self._measure(key, candidates, x)
        self.selected[key] = form
        return form

    def predict(self, key: TuningKey, names: Iterable[str]) -> str:
        """The form without measuring: forced, selected for the nearest size, or the first of the names.

        Raises:
            ConfigError: If the forced form is none of the names.
        """
        names = list(names)
        if (forced := self.forced(key.operation)) is not None:
            if forced not in names:
                raise ConfigError(f"{VARIABLE}: {key.operation}={forced} is none of {', '.join(names)}")
            return forced
        if not self.measures():
            return names[0]
        if self._predicted.get(key) not in names:
            self._read_file()
            prefix = key._replace(log2_size=0).to_text()[:-1]
            entries = ((text, form) for text, form in self._entries.items() if text.startswith(prefix))
            near = {int(text[len(prefix) :]): form for text, form in entries if form in names}
            nearest = min(near, key=lambda size: abs(size - key.log2_size), default=None)
            self._predicted[key] = names[0] if nearest is None else near[nearest]
        return self._predicted[key]

    def clear(self) -> None:
        """Forget the selections of this process; the file stays."""
        for memory in (self.selected, self._entries, self._predicted, self._files_read):
            memory.clear()
        device_name.cache_clear()

    def _measure(self, key: TuningKey, candidates: Candidates, x: Tensor) -> str:
        """Measure and remember; if another process has written its selection meanwhile, that one."""
        if len(candidates) == 1:
            return next(iter(candidates))
        times = time_candidates(candidates, x.device)
        first = next(iter(times))
        fastest = min(times, key=lambda name: times[name])
        form = fastest if times[fastest] < REQUIRED_RATIO * times[first] else first
        self._entries[key.to_text()] = form
        self._predicted.clear()
        if len(times) == len(candidates):  # a failure, such as a full memory, may be gone next time
            form = self._write_file(key.to_text(), form)
        return form

    def _read_file(self) -> None:
        """Read the selections of earlier runs, once; a file that cannot be read counts as empty."""
        if (path := cache_file()) not in self._files_read:
            self._files_read.add(path)
            self._entries.update(_read_entries(path) | self._entries)

    def _write_file(self, key: str, form: str) -> str:
        """Add a selection to the file unless it has one for the key by now; return the one in the file."""
        path = cache_file()
        entries = {key: form} | _read_entries(path)
        self._entries[key] = entries[key]
        write_cached((path, json.dumps(entries, indent=1, sort_keys=True).encode()))
        return entries[key]


def parse_forms(text: str) -> dict[str, str]:
    """Forms by operation from text such as ``"dwconv_norm=plain,mlp=fused"``."""
    pairs = (pair.partition("=") for pair in text.split(",") if pair.strip())
    return {operation.strip(): form.strip() for operation, _, form in pairs}


def has_dispatch_mode() -> bool:
    """Whether a dispatch mode intercepts operators, such as fake tensors or a counter of operations."""
    return is_in_torch_dispatch_mode()


def is_measurable(x: Tensor) -> bool:
    """Whether time may be measured now, on this tensor."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter) or x.device.type == "meta":
        return False
    if has_dispatch_mode():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def time_candidates(candidates: Candidates, device: torch.device, rounds: int = TIMING_ROUNDS) -> dict[str, float]:
    """Seconds of a call of each candidate in its fastest round, measured in turns (A B A B) after a warm-up.

    Other programs only make rounds slower: the fastest ones compare the candidates on a busy machine too, while medians
    compare what came between.

    A candidate that fails is skipped, with a warning. The state of the random number generators is restored, and hooks
    for saved tensors (for example those of checkpointing, which counts them) do not see the candidates' tensors.

    Raises:
        Exception: Of the last candidate, if all fail.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
        repeats = _warm_up(candidates, device)
        times: dict[str, list[float]] = {name: [] for name in repeats}
        for _ in range(rounds):
            for name, repeat in repeats.items():
                times[name].append(_time_call(candidates[name], repeat, device))
    return {name: min(seconds) for name, seconds in times.items()}


def _warm_up(candidates: Candidates, device: torch.device) -> dict[str, int]:
    """Call each candidate and find how often a round repeats it; those that fail are skipped."""
    repeats: dict[str, int] = {}
    failure: Exception | None = None
    for name, call in candidates.items():
        try:
            call()  # compiles
            repeats[name] = min(max(int(TIMING_ROUND_SECONDS / max(_time_call(call, 1, device), 1e-6)), 1), MAX_REPEATS)
        except Exception as error:
            failure = error
            warnings.warn(f"{name} cannot run here and is not used: {error}".splitlines()[0], stacklevel=4)
    if not repeats and failure is not None:
        raise failure
    return repeats


def _time_call(call: Callable[[], object], repeat: int, device: torch.device) -> float:
    """Seconds of one call, the mean of ``repeat`` calls in a row."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeat):
                call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / repeat
    begin = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - begin) / repeat


def cache_file() -> Path:
    """The file of selections for the present versions."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "convnext-dense" / f"choices-{_versions()}.json"


def read_cached(path: Path) -> bytes | None:
    """The content of a file of the cache; ``None`` if it is absent, or another user may have written it."""
    with suppress(OSError):
        check_private_folder(path.parent)
        return read_private(path, MAX_FILE_BYTES)
    return None


def write_cached(*files: tuple[Path, bytes]) -> None:
    """Write files to the cache in their order, if that is possible; only this user may read or write them.

    Args:
        files: Path and content of each, all in one folder.
    """
    folder = files[0][0].parent
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        check_private_folder(folder)
        for path, content in files:
            with atomic_write(path, durable=False) as draft:  # what is damaged is made again
                draft.write_bytes(content)
                draft.chmod(0o600)  # with a umask that lets a group write it would not be read again
    except SharedFolderError as error:
        warnings.warn(f"the cache {folder} is not used, {error.strerror}", stacklevel=2)
    except OSError:  # read-only homes are common on clusters: this process remembers
        pass


@functools.cache
def _versions() -> str:
    """Versions of PyTorch, CUDA and Triton, and a digest of the sources of all kernels."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for source in sorted((*folder.rglob("*.py"), *folder.rglob("*.c"))):
        digest.update(source.read_bytes())
    return f"torch-{torch.__version__}-cuda-{torch.version.cuda}-triton-{triton}-{digest.hexdigest()[:12]}"


def _read_entries(path: Path) -> dict[str, str]:
    try:
        found = json.loads(read_cached(path) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


autotuner = Autotuner(parse_forms(os.environ.get(VARIABLE, "")))
