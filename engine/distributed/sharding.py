"""Parameters, gradients and optimizer states spread over the processes: FSDP2, for what does not fit otherwise.

Source: Zhao et al., "PyTorch FSDP", VLDB 2023; ``torch.distributed.fsdp.fully_shard``. Every file stays that of one
process: states are gathered before they are saved, and cut into the shards of whoever loads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from backbones.base import Backbone

Model = TypeVar("Model", bound=nn.Module)


def shard_model(model: Model) -> Model:
    """Spread a model over all processes: each block of its backbone is one unit, and all the rest another.

    A unit is whole only while it computes. The model is on the CPU before, equal in all processes, and on the device of
    the process afterwards; the device never holds more of it than its shards and one unit.

    Args:
        model: The model; changed in place. Its parameters become :class:`DTensor`, so the optimizer is built later.

    Returns:
        The same model, which loads whole tensors as before.
    """
    device = get_device()
    mesh = init_device_mesh(device, (get_world_size(),))
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, Backbone):
        for name in backbone.block_stages():
            fully_shard(backbone.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.register_load_state_dict_pre_hook(_shard_loaded_weights)
    return model.to(device)


def shard_optimizer(optimizer: Optimizer) -> None:
    """Let the optimizer of a sharded model load the whole states that a checkpoint holds."""
    optimizer.register_load_state_dict_pre_hook(_shard_loaded_states)


def unwrapped(model: Any) -> Any:
    """The model itself, without what several processes put around it."""
    return model.module if is_model_wrapper(model) else model


def reshard(model: nn.Module) -> None:
    """Give up what is whole still, as after an evaluation: only the shards are the parameters that can be changed."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, which every process has, where ``like`` is sharded."""
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return tensor
    # Nothing is sent: all processes have read the same file.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered(*owners: Any) -> Iterator[None]:
    """Inside of this context, ``state_dict()`` of each owner is whole and on the CPU, in the main process alone.

    All processes have to enter. One tensor at a time is whole on the device; the main process's memory takes them all.

    Args:
        owners: Model, optimizer wrapper, hooks.
    """
    states = [_whole(owner.state_dict()) for owner in owners]
    for owner, state in zip(owners, states, strict=True):
        vars(owner)["state_dict"] = state.copy
    try:
        yield
    finally:
        for owner in owners:
            del vars(owner)["state_dict"]


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return type(value)((key, _whole(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    if isinstance(value, DTensor):
        tensor = value.full_tensor()
        # A copy also where it lies on the CPU: a file would hold the filling of uneven shards too.
        return tensor.to("cpu", copy=True) if is_main_process() else None
    return value


def _shard_loaded_weights(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    reshard(model)
    for name, own in model.state_dict(prefix=prefix).items():
        if name in state_dict:
            state_dict[name] = shard_like(state_dict[name], own)


def _shard_loaded_states(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    states = dict(state_dict["state"])
    for number, param in zip(numbers, params, strict=False):  # another number of them is the optimizer's own error
        states[number] = {
            key: shard_like(value, param) if isinstance(value, Tensor) and value.shape == param.shape else value
            for key, value in states.get(number, {}).items()
        }
    return {**state_dict, "state": states}
