"""How long the demo says that it will take."""

from __future__ import annotations

import pytest
import torch

import demo.pace
from demo.pace import Forecast, measure_slowness
from demo.steps import DemoStep


def step(seconds: float) -> DemoStep:
    return DemoStep("classifier", "Make a classifier", (), seconds=seconds)


@pytest.fixture
def twice_as_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.pace, "measure_slowness", lambda: 2.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("twice_as_slow")
def test_the_forecast_begins_with_the_machine_and_learns_from_the_steps() -> None:
    forecast = Forecast([[step(10)], [step(60)], [step(50), step(40)]])
    assert forecast.left() == "6 minutes"  # 2 x 160 s
    forecast.learn(1000)  # the data is drawn, which says nothing of trainings
    assert forecast.left() == "5 minutes"
    forecast.learn(190)
    assert forecast.left() == "5 minutes"  # 190 / 60 x 90 s
    forecast.learn(90)
    assert forecast.left() is None


@pytest.mark.usefixtures("twice_as_slow")
def test_the_rest_of_a_step_tells_nothing_of_the_others() -> None:
    forecast = Forecast([[step(100)], [step(90)]])
    forecast.learn(None)
    assert forecast.left() == "3 minutes"


@pytest.mark.usefixtures("twice_as_slow")
def test_what_is_done_or_was_never_timed_takes_no_time() -> None:
    assert Forecast([[], [step(0)], [step(25)]]).left() == "a minute"
    assert Forecast([[], [step(0)]]).left() is None


def test_nothing_is_said_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Forecast([[step(600)]]).left() is None


def test_the_measurement_changes_no_random_number() -> None:
    before = torch.get_rng_state()
    assert measure_slowness() > 0
    assert torch.equal(torch.get_rng_state(), before)
