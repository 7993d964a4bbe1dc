"""Parameters, gradients and optimizer states sharded over the processes (FSDP2), for models that do not fit otherwise.

Source: Zhao et al., "PyTorch FSDP", VLDB 2023; ``torch.distributed.fsdp.fully_shard``. Checkpoints are those of one
process: states are gathered before they are saved, and sharded again by the run that loads them.
"""

from __future__ import annotations

from copy import copy
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
    """Shard a model over all processes: each block of its backbone is one unit, everything else another.

    A unit is gathered only while it computes. The model is on the CPU before, equal in all processes, and on the device
    of the process afterwards; the device never holds more than its shards and one unit.

    Args:
        model: Model, changed in place. Its parameters become :class:`DTensor`: build the optimizer afterwards.

    Returns:
        The same model; ``load_state_dict`` takes whole tensors, as before.
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
    """Let the optimizer of a sharded model load a checkpoint's state, whose tensors are whole."""
    optimizer.register_load_state_dict_pre_hook(_shard_loaded_states)


def unwrapped(model: Any) -> Any:
    """Return the model itself, without the wrapper for several processes."""
    return model.module if is_model_wrapper(model) else model


def reshard(model: nn.Module) -> None:
    """Free the gathered parameters that an evaluation leaves: a change has to be made to the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a tensor that every process has whole, where ``like`` is sharded.

    Args:
        tensor: Whole tensor, or a sharded one, which is returned as it is.
        like: Tensor of the same shape whose sharding is taken.
    """
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return tensor
    # Without communication: all processes have read the same file.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """Return the shard that this process holds of a tensor, sharing its memory; the tensor itself if not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_whole(state: dict[str, Any]) -> dict[str, Any]:
    """Gather the sharded tensors of a state, each whole and on the CPU.

    All processes call it, with the same keys. One tensor at a time is whole on the device; the memory of the main
    process holds them all.

    Args:
        state: State of a model, an optimizer or a run: nested mappings and lists with tensors; it is not changed.

    Returns:
        The state with whole tensors in the main process; an empty mapping in the others.
    """
    gathered: dict[str, Any] = _whole(state)
    return gathered if is_main_process() else {}


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        tensor = value.full_tensor()
        # A copy also where it lies on the CPU: a file would hold the padding of uneven shards too.
        return tensor.to("cpu", copy=True) if is_main_process() else None
    if isinstance(value, dict):
        same = copy(value)  # of its own class, with the versions that a module's state has beside it
        for key, inner in value.items():
            same[key] = _whole(inner)
        return same
    return [_whole(inner) for inner in value] if isinstance(value, list) else value


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
