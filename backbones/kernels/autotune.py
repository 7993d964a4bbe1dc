"""Measure once which of several ways is fastest on this device, and remember it.

A question names an operation, the device, the precision, what is fixed in a network (channels, kernel size, whether it
trains) and the size of the map as a power of two. Its answer is the name of a candidate. It is taken, in this order,
from what was forced, from this process, from a file in the user's cache directory (``XDG_CACHE_HOME``, else
``~/.cache``; one file for each combination of versions of PyTorch, Triton and these kernels), and from measuring the
candidates in turns on the present tensors. An answer is forced by :func:`force` or by the environment:
``CONVNEXT_CHOICE="dwconv_norm=plain,mlp=fused"``, read when this module is imported.

Nothing is measured while a graph is traced or captured, under a dispatch mode, or on tensors without content: then the
answer for the nearest size, or the first candidate, is taken. With ``torch.use_deterministic_algorithms`` it is always
the first, so that a run does not depend on an earlier one; so it is within :func:`without_measuring`, where trainings
on a CPU take place.

Several processes may answer differently, and may do so safely: candidates differ in the last bits of a process's own
activations alone, never in shapes or in what is communicated, and gradients are averaged before any parameter moves, so
that replicas stay equal. Waiting for rank 0 would put a collective into a forward pass that not every rank may run.
Processes of one machine share the file, and one that finds an answer there after measuring takes it for its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import statistics
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
from torch.utils._python_dispatch import _get_current_dispatch_mode

from backbones.errors import UserError

VARIABLE = "CONVNEXT_CHOICE"
ROUNDS = 7
ROUND_SECONDS = 2e-3  # a round repeats a call until it lasts about so long
GAIN = 0.97  # of the first candidate's time: what another has to reach to be preferred

Candidates = Mapping[str, Callable[[], object]]


class TuningKey(NamedTuple):
    """What an answer depends on.

    Attributes:
        operation: Name of the operation, which is also what is forced.
        device: Name of the device.
        dtype: Precision of the map.
        static: What does not change while a network runs, such as channels.
        size: Logarithm of the number of elements, base 2, rounded down.
    """

    operation: str
    device: str
    dtype: str
    static: tuple[int, ...]
    size: int

    @classmethod
    def about(
        cls, operation: str, x: Tensor, static: tuple[int, ...] = (), dtype: torch.dtype | None = None
    ) -> TuningKey:
        """The question of an operation on a tensor; ``dtype`` where it computes in another precision."""
        return cls(operation, device_name(x.device), str(dtype or x.dtype), static, x.numel().bit_length() - 1)

    def key(self) -> str:
        """The question as a line of the file."""
        return "|".join([self.operation, self.device, self.dtype, ",".join(map(str, self.static)), str(self.size)])


def _from_environment(text: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text.split(",") if pair.strip())
    return {operation.strip(): answer.strip() for operation, _, answer in pairs}


_answers: dict[str, str] = {}  # lines of the file
_known: dict[TuningKey, str] = {}  # the same, as asked
_guesses: dict[TuningKey, str] = {}  # taken without measuring
_forced: dict[str, str] = _from_environment(os.environ.get(VARIABLE, ""))
_read: set[Path] = set()
_measures = [True]


@functools.cache
def device_name(device: torch.device) -> str:
    """Name of a device, for CPUs with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.machine()} {platform.processor()} {os.cpu_count()} cores {torch.get_num_threads()} threads"
    return device.type


@contextmanager
def force(**answers: str) -> Iterator[None]:
    """Answer these operations so within the context; ``dwconv_norm="plain"``."""
    before = dict(_forced)
    _forced.update(answers)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@contextmanager
def without_measuring() -> Iterator[None]:
    """Within the context the answer is the first candidate, whatever this or an earlier process has measured.

    A run on a CPU is the same bit by bit when it is repeated: it must not depend on how busy the machine was once.
    """
    before = _measures[0]
    _measures[0] = False
    try:
        yield
    finally:
        _measures[0] = before


def measures() -> bool:
    """Whether answers may depend on measurements."""
    return _measures[0] and not torch.are_deterministic_algorithms_enabled()


def forced(operation: str) -> str | None:
    """The forced answer of an operation."""
    return _forced.get(operation)


def choose(question: TuningKey, candidates: Candidates, x: Tensor) -> str:
    """Name of the candidate to use.

    Args:
        question: What is asked.
        candidates: Ways to do the same thing, the expected best first. They are called without arguments, many times,
            and must leave nothing behind, no gradient in a parameter and no changed buffer.
        x: A tensor that they use; its device tells how time is taken.

    Raises:
        UserError: If an answer was forced that is none of the candidates.
    """
    if question.operation in _forced:
        return expected(question, candidates)
    if not measures():
        return expected(question, candidates)
    if (known := _known.get(question, "")) in candidates:
        return known
    if not may_measure(x):
        return expected(question, candidates)
    _read_file()
    answer = _answers.get(question.key(), "")
    if answer not in candidates:
        answer = _measured(question, candidates, x)
    _known[question] = answer
    return answer


def expected(question: TuningKey, names: Iterable[str]) -> str:
    """The answer without measuring: forced, known for the nearest size, or the first of the names.

    Raises:
        UserError: If an answer was forced that is none of the names.
    """
    names = list(names)
    if (wanted := forced(question.operation)) is not None:
        if wanted not in names:
            raise UserError(f"{VARIABLE}: {question.operation}={wanted} is none of {', '.join(names)}")
        return wanted
    if not measures():
        return names[0]
    if _guesses.get(question) not in names:
        _read_file()
        head = question._replace(size=0).key()[:-1]
        near = {int(key[len(head) :]): name for key, name in _answers.items() if key.startswith(head) and name in names}
        _guesses[question] = near[min(near, key=lambda size: abs(size - question.size))] if near else names[0]
    return _guesses[question]


def may_measure(x: Tensor) -> bool:
    """Whether time may be taken now, on this tensor."""
    real = type(x) in (Tensor, torch.nn.Parameter) and x.device.type != "meta" and _get_current_dispatch_mode() is None
    if torch.compiler.is_compiling() or not real:
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def seconds(candidates: Candidates, device: torch.device, rounds: int = ROUNDS) -> dict[str, float]:
    """Median time of a call of each candidate, taken in turns (A B A B) after a warm-up.

    A candidate that fails is left out, with a warning. Random numbers that they draw are given back, and hooks for
    saved tensors (checkpointing's, say, which counts them) do not see theirs.

    Raises:
        Exception: What the last one raised, if none is left.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
        repeats = _warm_up(candidates, device)
        times: dict[str, list[float]] = {name: [] for name in repeats}
        for _ in range(rounds):
            for name, repeat in repeats.items():
                times[name].append(_time(candidates[name], repeat, device))
    return {name: statistics.median(taken) for name, taken in times.items()}


def _warm_up(candidates: Candidates, device: torch.device) -> dict[str, int]:
    """Call each candidate, and find how often a round has to repeat it; those that fail are left out."""
    repeats: dict[str, int] = {}
    failure: Exception | None = None
    for name, call in candidates.items():
        try:
            call()  # compiles
            repeats[name] = min(max(int(ROUND_SECONDS / max(_time(call, 1, device), 1e-6)), 1), 50)
        except Exception as error:
            failure = error
            warnings.warn(f"{name} cannot run here and is not used: {error}".splitlines()[0], stacklevel=4)
    if not repeats and failure is not None:
        raise failure
    return repeats


def _time(call: Callable[[], object], repeat: int, device: torch.device) -> float:
    """Seconds of one call, over some in a row."""
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


def _measured(question: TuningKey, candidates: Candidates, x: Tensor) -> str:
    """Measure, and remember; where another process was faster to answer, its answer."""
    if len(candidates) == 1:
        return next(iter(candidates))
    taken = seconds(candidates, x.device)
    first = next(iter(taken))
    best = min(taken, key=lambda name: taken[name])
    answer = best if taken[best] < GAIN * taken[first] else first
    _answers[question.key()] = answer
    _guesses.clear()
    if len(taken) == len(candidates):  # a failure, such as a full memory, may be gone next time
        answer = _share(question.key(), answer)
    return answer


def cache_file() -> Path:
    """The file of answers for the present versions."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "convnext-dense" / f"choices-{_versions()}.json"


@functools.cache
def _versions() -> str:
    """Versions of PyTorch, CUDA and Triton, and a digest of the kernels and of the CPU's form of a block."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in sorted((*here.rglob("*.py"), *here.rglob("*.c"))):
        digest.update(source.read_bytes())
    return f"torch-{torch.__version__}-cuda-{torch.version.cuda}-triton-{triton}-{digest.hexdigest()[:12]}"


def _read_file() -> None:
    """Take over the answers of earlier runs, once; a file that cannot be read is none."""
    if (path := cache_file()) not in _read:
        _read.add(path)
        _answers.update(_load(path) | _answers)


def _load(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def _share(key: str, answer: str) -> str:
    """Write an answer to the file, unless there is one by now, and return the one that holds."""
    path = cache_file()
    together = {key: answer} | _load(path)
    _answers[key] = together[key]
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(together, indent=1, sort_keys=True))
        os.replace(draft, path)
    except OSError:  # read-only homes are common on clusters: this process remembers
        with suppress(OSError):
            draft.unlink()
    return together[key]


def forget() -> None:
    """Forget what this process knows; the file stays."""
    for memory in (_answers, _known, _guesses, _read):
        memory.clear()
    device_name.cache_clear()
