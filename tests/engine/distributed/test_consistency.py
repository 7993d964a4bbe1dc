"""What the processes of a job compare before they wait for each other; parameters without a gradient by name."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import nn

from backbones.errors import UserError
from engine.config.schema import check_settings
from engine.distributed.consistency import check_same_data, describe_loader
from engine.optim.unused_parameters import check_unused_parameters


class Images:
    """A data set of so many images, under a folder."""

    def __init__(self, count: int, root: str = "data", name: str = "img") -> None:
        self.count, self.root, self.name = count, root, name

    def __len__(self) -> int:
        return self.count

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"img_path": f"{self.root}/train/{self.name}_{index}.jpg"}


def loader(dataset: Images, batches: int = 5) -> Any:
    return type("Loader", (), {"dataset": dataset, "__len__": lambda self: batches})()


def test_equal_data_in_different_places_is_equal() -> None:
    told = [describe_loader(loader(Images(20, root))) for root in ("data", "other/place", "data")]
    check_same_data("training", told)
    check_same_data("training", told[:1])
    assert describe_loader(loader(Images(0), 0))["samples"] == 0


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (loader(Images(20), 4), r"\(ranks 0, 2: 5 batches; rank 1: 4 batches\)"),
        (loader(Images(21)), r"\(ranks 0, 2: 20 samples; rank 1: 21 samples\)"),
        (
            loader(Images(20, name="x")),
            r"\(ranks 0, 2: other files \(digest \w+\); rank 1: other files .*\)",
        ),
    ],
)
def test_a_difference_says_who_has_what(other: Any, line: str) -> None:
    usual = loader(Images(20))
    with pytest.raises(UserError, match=f"^validation data differs between the processes {line}: [^\n]*$"):
        check_same_data("validation", [describe_loader(one) for one in (usual, other, usual)])


def test_where_each_process_has_data_of_its_own_the_batches_count() -> None:
    mine, yours = loader(Images(20)), loader(Images(21, name="x"))
    check_same_data("training", [describe_loader(one, identity=False) for one in (mine, yours)])
    with pytest.raises(UserError, match="rank 0: 5 batches; rank 1: 4 batches"):
        check_same_data("training", [describe_loader(one, identity=False) for one in (mine, loader(Images(20), 4))])


@pytest.mark.parametrize("patience", [0, -1.0, "long", True])
def test_the_patience_of_a_step_is_a_number_of_seconds(patience: Any) -> None:
    check_settings(Config(dict(env_cfg=dict(patience=90))))
    check_settings(Config(dict(env_cfg=dict(patience=None))))
    with pytest.raises(UserError, match=r"^env_cfg.patience=.*: a positive number of seconds for a step is needed$"):
        check_settings(Config(dict(env_cfg=dict(patience=patience))))


class Branches(nn.Module):
    """Uses ``left``; of ``right``, nothing; ``frozen`` is not to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.frozen = nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1)
        self.frozen.requires_grad_(False)


def step(world: int, accumulation: int = 1, **config: Any) -> None:
    """Two steps of a run, as its loop does them."""
    model = Branches()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=accumulation)
    logger = logging.getLogger("test_gradients")
    runner = SimpleNamespace(
        model=model, optim_wrapper=wrapper, world_size=world, cfg=config, sharded=False, logger=logger
    )
    wrapper.initialize_count_status(model, 0, 2 * accumulation)
    for number in range(2):
        for _ in range(accumulation):
            wrapper.backward(wrapper.scale_loss(model.left(torch.ones(1, 2)).sum()))
        if not number:
            check_unused_parameters(runner)
        wrapper.step()
        wrapper.zero_grad()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_several_processes_stop_at_a_parameter_without_gradient(accumulation: int) -> None:
    with pytest.raises(UserError, match=r"^2 parameters get no gradient: right.weight, right.bias; freeze what is not"):
        step(world=2, accumulation=accumulation)


@pytest.mark.parametrize(("world", "config"), [(1, {}), (2, {"find_unused_parameters": True})])
def test_otherwise_it_is_logged_once(caplog: pytest.LogCaptureFixture, world: int, config: dict[str, Any]) -> None:
    step(world, **config)
    (line,) = caplog.messages
    assert line.startswith("2 parameters get no gradient in the first step: right.weight, right.bias")
    assert ("would need find_unused_parameters=True" in line) == (world == 1)
