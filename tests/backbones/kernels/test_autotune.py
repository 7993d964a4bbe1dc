"""The fastest of several ways is measured once and remembered."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from backbones import UserError
from backbones.kernels import autotune as choice
from backbones.kernels.autotune import TuningKey

X = torch.zeros(4, 8)


class Ways:
    """Two candidates that take a set time by a clock of their own, and count how often they are called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.calls = dict.fromkeys(seconds, 0)
        self.order: list[str] = []
        self.now = 0.0
        self.candidates = {name: self._way(name, taken) for name, taken in seconds.items()}
        monkeypatch.setattr(choice.time, "perf_counter", lambda: self.now)

    def _way(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.calls[name] += 1
            self.order.append(name)
            self.now += seconds

        return call

    def choose(self, question: TuningKey | None = None, x: Tensor = X) -> str:
        return choice.choose(question or TuningKey.about("way", x, (8,)), self.candidates, x)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    choice.forget()
    yield tmp_path / "cache"
    choice.forget()


def test_the_fastest_is_taken_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    assert ways.choose() == "b"
    calls = dict(ways.calls)
    assert calls == {"a": 2 + choice.ROUNDS, "b": 2 + choice.ROUNDS}
    assert ways.order[-4:] == ["a", "b", "a", "b"]
    choice._answers.clear()  # without a look at what the file is made of
    assert ways.choose() == "b"
    assert ways.calls == calls


def test_short_calls_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=1e-4, b=1.0)
    assert ways.choose() == "a"
    assert ways.calls["a"] == 2 + 20 * choice.ROUNDS


def test_a_gain_within_the_noise_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ways(monkeypatch, a=1.0, b=0.98).choose() == "a"


def test_the_next_process_reads_the_file(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    Ways(monkeypatch, a=3.0, b=2.0).choose()
    choice.forget()
    again = Ways(monkeypatch, a=2.0, b=3.0)
    assert again.choose() == "b"
    assert not any(again.calls.values())
    assert cache in choice.cache_file().parents
    assert torch.__version__ in choice.cache_file().name


def test_what_the_file_says_of_another_device_or_size_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    ways.choose()
    base = TuningKey.about("way", X, (8,))
    for other in (
        base._replace(device="another"),
        base._replace(dtype="torch.bfloat16"),
        base._replace(static=(9,)),
        base._replace(size=7),
        base._replace(operation="other"),
    ):
        before = ways.calls["a"]
        ways.choose(other)
        assert ways.calls["a"] > before


def test_an_answer_of_another_process_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    question = TuningKey.about("way", X, (8,))

    def meanwhile() -> None:
        path = choice.cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({question.key(): "a", "something|else": "c"}))

    ways.candidates["b"] = meanwhile
    assert ways.choose(question) == "a"
    assert json.loads(choice.cache_file().read_text())["something|else"] == "c"
    assert not list(choice.cache_file().parent.glob("*.[0-9]*[0-9]"))


@pytest.mark.parametrize("content", ["{", "[]", '{"way": 3}', "\udcff"])
def test_a_damaged_file_is_no_file(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = choice.cache_file()
    path.parent.mkdir(parents=True)
    path.write_text(content, errors="surrogateescape")
    assert Ways(monkeypatch, a=3.0, b=2.0).choose() == "b"
    choice.forget()
    assert Ways(monkeypatch, a=2.0, b=3.0).choose() == "b"


def test_without_a_place_to_write_the_process_remembers(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.write_text("a file in the way")
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    assert ways.choose() == "b"
    calls = dict(ways.calls)
    assert ways.choose() == "b"
    assert ways.calls == calls


def test_forced_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    with choice.force(way="a"):
        assert ways.choose() == "a"
        with choice.force(way="b"):
            assert ways.choose() == "b"
        assert ways.choose() == "a"
    assert not any(ways.calls.values())
    assert ways.choose() == "b"
    with choice.force(way="c"), pytest.raises(UserError, match=r"way=c is none of a, b"):
        ways.choose()
    assert choice._from_environment(" way = a, other=b ,") == {"way": "a", "other": "b"}


def test_a_candidate_that_fails_is_left_out_and_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=1.0, b=2.0)

    def fails() -> None:
        raise RuntimeError("out of memory\nwith details")

    ways.candidates["a"] = fails
    with pytest.warns(UserWarning, match="^a cannot run here and is not used: out of memory$"):
        assert ways.choose() == "b"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ways.choose() == "b"
    assert not choice.cache_file().exists()
    choice.forget()
    ways.candidates["b"] = fails
    with pytest.warns(UserWarning, match="cannot run"), pytest.raises(RuntimeError, match="out of memory"):
        ways.choose()


def test_nothing_is_measured_where_a_run_must_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    assert ways.choose() == "b"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    choice._known.clear()
    calls = dict(ways.calls)
    assert ways.choose() == "a"
    assert ways.calls == calls


def test_nothing_is_measured_on_tensors_without_content(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways(monkeypatch, a=3.0, b=2.0)
    assert ways.choose(x=torch.zeros(4, 8, device="meta")) == "a"
    with torch._subclasses.fake_tensor.FakeTensorMode() as mode:
        fake = mode.from_tensor(X)
    assert ways.choose(x=fake) == "a"
    with FlopCounterMode(display=False):
        assert ways.choose() == "a"
    assert not any(ways.calls.values())
    assert ways.choose() == "b"


def test_unmeasured_sizes_take_the_answer_of_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    question = TuningKey.about("way", X, (8,))
    assert choice.expected(question, ("a", "b")) == "a"
    Ways(monkeypatch, a=3.0, b=2.0).choose(question._replace(size=12))
    assert choice.expected(question, ("a", "b")) == "b"
    Ways(monkeypatch, a=1.0, b=2.0).choose(question._replace(size=3))
    assert choice.expected(question, ("a", "b")) == "a"
    assert choice.expected(question._replace(size=11), ("a", "b")) == "b"
    assert choice.expected(question._replace(size=11), ("a", "c")) == "a"
    assert choice.expected(question._replace(static=(9,)), ("a", "b")) == "a"


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
        choice.seconds({"draw": draw}, torch.device("cpu"), rounds=2)
    assert not seen
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.gpu
def test_times_on_a_gpu_are_those_of_the_gpu() -> None:
    small, large = (torch.randn(size, size, device="cuda") for size in (64, 8192))
    candidates = {"large": lambda: large @ large, "small": lambda: small @ small}
    assert choice.choose(TuningKey.about("product", small), candidates, small) == "small"
