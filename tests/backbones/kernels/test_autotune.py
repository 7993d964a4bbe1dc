"""The fastest of several ways is measured once and remembered."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from backbones.errors import ConfigError
from backbones.kernels import autotune
from backbones.kernels.autotune import TuningKey, autotuner, cache_file, parse_forms, time_candidates, write_cached

X = torch.zeros(4, 8)


class Ways:
    """Two candidates that take a set time by a clock of their own, and count how often they are called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.calls = dict.fromkeys(seconds, 0)
        self.order: list[str] = []
        self.now = 0.0
        self.candidates = {name: self._way(name, taken) for name, taken in seconds.items()}
        monkeypatch.setattr(autotune.time, "perf_counter", lambda: self.now)

    def _way(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.calls[name] += 1
            self.order.append(name)
            self.now += seconds

        return call

    def select(self, key: TuningKey | None = None, x: Tensor = X) -> str:
        return autotuner.select(key or TuningKey.of_tensor("way", x, (8,)), self.candidates, x)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    autotuner.clear()
    yield tmp_path / "cache"
    autotuner.clear()


def test_the_fastest_is_taken_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    assert ways.select() == "b"
    calls = dict(ways.calls)
    assert calls == {"a": 2 + autotune.TIMING_ROUNDS, "b": 2 + autotune.TIMING_ROUNDS}
    assert ways.order[-4:] == ["a", "b", "a", "b"]
    autotuner._entries.clear()  # without a look at what the file is made of
    assert ways.select() == "b"
    assert ways.calls == calls


def test_rounds_that_something_disturbs_do_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    fast = ways.candidates["b"]

    def disturbed() -> None:
        fast()
        ways.now += 5.0 * (ways.calls["b"] < 2 + autotune.TIMING_ROUNDS)  # all rounds but the last one

    ways.candidates["b"] = disturbed
    assert ways.select() == "b"


def test_short_calls_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=1e-4, b=1.0)
    assert ways.select() == "a"
    assert ways.calls["a"] == 2 + 20 * autotune.TIMING_ROUNDS


def test_a_gain_within_the_noise_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ways(monkeypatch, a=1.0, b=0.98).select() == "a"


def test_the_next_process_reads_the_file(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    Ways(monkeypatch, a=3.0, b=2.0).select()
    autotuner.clear()
    again = Ways(monkeypatch, a=2.0, b=3.0)
    assert again.select() == "b"
    assert not any(again.calls.values())
    assert cache in cache_file().parents
    assert torch.__version__ in cache_file().name


def test_what_the_file_says_of_another_device_or_size_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    ways.select()
    base = TuningKey.of_tensor("way", X, (8,))
    for other in (
        base._replace(device="another"),
        base._replace(dtype="torch.bfloat16"),
        base._replace(static=(9,)),
        base._replace(log2_size=7),
        base._replace(operation="other"),
    ):
        before = ways.calls["a"]
        ways.select(other)
        assert ways.calls["a"] > before


def test_an_answer_of_another_process_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    key = TuningKey.of_tensor("way", X, (8,))

    def meanwhile() -> None:
        path = cache_file()
        write_cached((path, json.dumps({key.to_text(): "a", "something|else": "c"}).encode()))

    ways.candidates["b"] = meanwhile
    assert ways.select(key) == "a"
    assert json.loads(cache_file().read_text())["something|else"] == "c"
    assert list(cache_file().parent.iterdir()) == [cache_file()], "no drafts are left"


@pytest.mark.parametrize("content", ["{", "[]", '{"way": 3}', "\udcff"])
def test_a_damaged_file_is_no_file(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache_file()
    path.parent.mkdir(parents=True)
    path.write_text(content, errors="surrogateescape")
    assert Ways(monkeypatch, a=3.0, b=2.0).select() == "b"
    autotuner.clear()
    assert Ways(monkeypatch, a=2.0, b=3.0).select() == "b"


def test_a_pipe_or_a_link_in_its_place_is_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "precious"
    mine.write_text("a file of mine")
    path = cache_file()
    path.parent.mkdir(parents=True)
    for place in (lambda: os.mkfifo(path), lambda: path.symlink_to(mine)):
        place()
        autotuner.clear()
        assert Ways(monkeypatch, a=3.0, b=2.0).select() == "b"
        assert json.loads(path.read_text()), "replaced by a file"
        assert not path.is_symlink()
        path.unlink()
    assert mine.read_text() == "a file of mine"


def test_no_link_under_the_name_of_a_draft_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "precious"
    mine.write_text("a file of mine")
    path = cache_file()
    path.parent.mkdir(parents=True)
    for name in (path.with_suffix(f".{os.getpid()}").name, f".{path.name}.{os.getpid()}.part", f".{path.name}.00.part"):
        (path.parent / name).symlink_to(mine)
    monkeypatch.setattr("secrets.token_hex", lambda size: "00")  # even a name that was guessed
    Ways(monkeypatch, a=3.0, b=2.0).select()
    assert mine.read_text() == "a file of mine"


def test_a_file_that_others_may_write_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Ways(monkeypatch, a=3.0, b=2.0).select()
    autotuner.clear()
    assert Ways(monkeypatch, a=2.0, b=3.0).select() == "b", "remembered"
    for place in (cache_file(), cache_file().parent):
        place.chmod(0o777)
        autotuner.clear()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the cache .* is not used")
            assert Ways(monkeypatch, a=2.0, b=3.0).select() == "a"


def test_without_a_place_to_write_the_process_remembers(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.write_text("a file in the way")
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    assert ways.select() == "b"
    calls = dict(ways.calls)
    assert ways.select() == "b"
    assert ways.calls == calls


def test_forced_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    with autotuner.use(way="a"):
        assert ways.select() == "a"
        with autotuner.use(way="b"):
            assert ways.select() == "b"
        assert ways.select() == "a"
    assert not any(ways.calls.values())
    assert ways.select() == "b"
    with autotuner.use(way="c"), pytest.raises(ConfigError, match=r"way=c is none of a, b"):
        ways.select()
    assert parse_forms(" way = a, other=b ,") == {"way": "a", "other": "b"}


def test_a_candidate_that_fails_is_left_out_and_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=1.0, b=2.0)

    def fails() -> None:
        raise RuntimeError("out of memory\nwith details")

    ways.candidates["a"] = fails
    with pytest.warns(UserWarning, match="^a cannot run here and is not used: out of memory$"):
        assert ways.select() == "b"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ways.select() == "b"
    assert not cache_file().exists()
    autotuner.clear()
    ways.candidates["b"] = fails
    with pytest.warns(UserWarning, match="cannot run"), pytest.raises(RuntimeError, match="out of memory"):
        ways.select()


def test_nothing_is_measured_where_a_run_must_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    assert ways.select() == "b"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    autotuner.selected.clear()
    calls = dict(ways.calls)
    assert ways.select() == "a"
    assert ways.calls == calls


def test_nothing_is_measured_on_tensors_without_content(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    assert ways.select(x=torch.zeros(4, 8, device="meta")) == "a"
    with torch._subclasses.fake_tensor.FakeTensorMode() as mode:
        fake = mode.from_tensor(X)
    assert ways.select(x=fake) == "a"
    with FlopCounterMode(display=False):
        assert ways.select() == "a"
    assert not any(ways.calls.values())
    assert ways.select() == "b"


def test_unmeasured_sizes_take_the_answer_of_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    key = TuningKey.of_tensor("way", X, (8,))
    assert autotuner.predict(key, ("a", "b")) == "a"
    Ways(monkeypatch, a=3.0, b=2.0).select(key._replace(log2_size=12))
    assert autotuner.predict(key, ("a", "b")) == "b"
    Ways(monkeypatch, a=1.0, b=2.0).select(key._replace(log2_size=3))
    assert autotuner.predict(key, ("a", "b")) == "a"
    assert autotuner.predict(key._replace(log2_size=11), ("a", "b")) == "b"
    assert autotuner.predict(key._replace(log2_size=11), ("a", "c")) == "a"
    assert autotuner.predict(key._replace(static=(9,)), ("a", "b")) == "a"


def test_measuring_draws_no_random_number_and_shows_hooks_nothing() -> None:
    seen: list[Tensor] = []
    weight = torch.ones(3, requires_grad=True)

    def draw() -> None:
        (weight * torch.rand(3)).exp().sum().backward()
        weight.grad = None

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with saved_tensors_hooks(lambda kept: (seen.append(kept), kept)[1], lambda kept: kept):
        time_candidates({"draw": draw}, torch.device("cpu"), rounds=2)
    assert not seen
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.gpu
def test_times_on_a_gpu_are_those_of_the_gpu() -> None:
    small, large = (torch.randn(size, size, device="cuda") for size in (64, 8192))
    candidates = {"large": lambda: large @ large, "small": lambda: small @ small}
    assert autotuner.select(TuningKey.of_tensor("product", small), candidates, small) == "small"
