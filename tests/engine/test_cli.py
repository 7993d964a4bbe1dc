"""Options that launchers pass to the tools."""

from __future__ import annotations

import argparse
import os

import pytest

from engine.cli import add_launch_options


@pytest.mark.parametrize("arguments", [["--local-rank=3"], ["--local_rank", "3"]])
def test_the_rank_of_older_launchers_reaches_the_environment(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    add_launch_options(parser)
    monkeypatch.setenv("LOCAL_RANK", "0")  # so that what the parser sets is undone
    monkeypatch.delenv("LOCAL_RANK")
    parser.parse_args(arguments)
    assert os.environ["LOCAL_RANK"] == "3"
    monkeypatch.setenv("LOCAL_RANK", "1")  # of the launcher itself
    parser.parse_args(arguments)
    assert os.environ["LOCAL_RANK"] == "1"
