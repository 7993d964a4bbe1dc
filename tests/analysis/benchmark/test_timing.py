"""Timing in turns: order, repeats, ratios and rates."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.benchmark.timing import Speedup, quartiles, rates, ratios, take_turns


def test_sides_take_turns_and_settle_around_each(clock: Any) -> None:
    taken = take_turns({"a": clock.work("a", 0.2), "b": clock.work("b", 0.5)}, 3, lambda: clock.log.append("|"), clock)
    assert clock.log == [*"|a||b|", *"|a||b|" * 3]
    assert taken["a"] == pytest.approx((0.2,) * 3)
    assert taken["b"] == pytest.approx((0.5,) * 3)


def test_what_the_device_has_still_to_do_counts(clock: Any) -> None:

    def settle() -> None:
        clock.now += 0.25

    assert take_turns({"a": clock.work("a", 0.5)}, 2, settle, clock)["a"] == (0.75, 0.75)


def test_short_steps_are_repeated_within_a_round(clock: Any) -> None:
    taken = take_turns({"quick": clock.work("quick", 0.01), "slow": clock.work("slow", 1.0)}, 1, clock=clock)
    assert clock.log.count("quick") in (10, 11)
    assert clock.log.count("slow") == 2
    assert taken["quick"] == pytest.approx((0.01,))


def test_ratios_are_taken_round_by_round() -> None:
    # The machine is three times slower in the second round; ours is twice as fast throughout.
    assert ratios((1.0, 3.0, 1.0), (2.0, 6.0, 2.0)) == [2.0, 2.0, 2.0]
    assert str(Speedup.between((1.0, 3.0, 1.0), (2.0, 6.0, 2.0))) == "2.00 (2.00-2.00)"


def test_rates_have_the_slow_quartile_first() -> None:
    assert rates((0.5, 1.0, 2.0), 4) == (4.0, (4 / 1.5, 4 / 0.75))
    assert quartiles((3.0,)) == (3.0, 3.0)
