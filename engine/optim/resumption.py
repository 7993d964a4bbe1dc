"""The config's optimizer settings after a resume, which restores the checkpoint's over them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backbones.errors import ConfigError
from engine.optim.schedules import as_plain

# Settings that an optimizer reads anew in every step. Others decide what its state holds (such as amsgrad).
CHANGEABLE = (
    *("lr", "weight_decay", "betas", "eps", "momentum", "dampening", "alpha", "layer_id"),
    *("foreach", "fused", "capturable", "differentiable", "maximize"),
)
UNLISTED = ("layer_id", "foreach", "fused", "capturable", "differentiable")  # changes without an effect on the values
SCALER_SETTINGS = ("growth_factor", "backoff_factor", "growth_interval")
SAME_SHAPE_STATES = ("exp_avg", "exp_avg_sq", "momentum_buffer")
START_ANEW = "keep it, or start from the weights alone with --cfg-options load_from=FILE instead of --resume"


@dataclass(frozen=True)
class OptimizerSettings:
    """What a config states of an optimizer, by parameter group.

    Attributes:
        groups: Settings of each group of an optimizer wrapper, the one for its base rate included.
        scaler: Settings of the loss scaler; empty without one.
    """

    groups: tuple[dict[str, Any], ...]
    scaler: Mapping[str, Any]

    @classmethod
    def of(cls, wrapper: Any) -> OptimizerSettings:
        """Settings of an optimizer wrapper that has not been resumed yet."""
        groups = tuple(
            {key: value for key, value in group.items() if key != "params"} for group in wrapper.param_groups
        )
        return cls(groups, _scaler_settings(wrapper))

    @property
    def peaks(self) -> list[float]:
        """The config's rate of each group."""
        return [group.get("initial_lr", group["lr"]) for group in self.groups]

    def apply(self, wrapper: Any, scheduled: Collection[str]) -> list[str]:
        """Set them in a resumed optimizer wrapper.

        Args:
            wrapper: Optimizer wrapper with the state of a checkpoint; one with these settings is not changed.
            scheduled: Settings whose present value is a schedule's.

        Returns:
            The changes in words, such as ``lr 0.002 -> 1e-05``.

        Raises:
            ConfigError: If a setting cannot be changed in the middle of a training.
        """
        changes: dict[str, str] = {}
        for ours, group in zip(self.groups, wrapper.param_groups, strict=True):
            for key, before, now in _differences(ours, group, scheduled):
                _check_changeable(key, before, now)
                if key not in UNLISTED and before is not None:
                    changes.setdefault(key, f"{key} {_short(before)} -> {_short(now)}")
                group[key] = now
        for key, before in _scaler_settings(wrapper).items():
            if self.scaler[key] != before:
                changes[key] = f"loss_scale.{key} {before} -> {self.scaler[key]}"
                scaler = wrapper.loss_scaler
                scaler.load_state_dict({**scaler.state_dict(), key: self.scaler[key]})
        return list(changes.values())

    def reset_scheduled(self, groups: Sequence[dict[str, Any]], scheduled: Collection[str]) -> None:
        """Set the config's value, from which a new schedule starts, of each setting that was scheduled."""
        for ours, group in zip(self.groups, groups, strict=True):
            for key in scheduled & ours.keys():
                group[key] = ours.get(f"initial_{key}", ours[key])
                group.pop(f"initial_{key}", None)


def check_optimizer(optimizer: Any, stated: Mapping[str, Any], saved: Mapping[str, Any] | None) -> None:
    """Check that a resumed optimizer is of the checkpoint's kind and that its state fits its parameters.

    Args:
        optimizer: Optimizer with the state of a checkpoint.
        stated: ``optim_wrapper.optimizer`` of the config.
        saved: The same of the checkpoint; ``None`` if it does not say.

    Raises:
        ConfigError: If one of them is not the case.
    """
    kinds = [None if saved is None else saved.get("type"), stated.get("type")]
    if kinds[0] is not None and kinds[0] != str(kinds[1]):
        raise ConfigError(f"--resume: optimizer {kinds[0]} in the checkpoint, {kinds[1]} in the config: {START_ANEW}")
    for param, state in optimizer.state.items():
        for key in SAME_SHAPE_STATES:
            value = state.get(key)
            if isinstance(value, Tensor) and value.shape != param.shape:
                raise ConfigError(
                    f"--resume: the parameter groups are not the checkpoint's ({key} of {tuple(value.shape)} for a "
                    f"parameter of {tuple(param.shape)}): keep paramwise_cfg and what is frozen, or leave --resume out"
                )


def _differences(
    ours: Mapping[str, Any], group: Mapping[str, Any], scheduled: Collection[str]
) -> Iterator[tuple[str, Any, Any]]:
    """Key, value in the checkpoint (``None`` for no value) and value in the config of each setting that differs."""
    for key, now in ours.items():
        if key in scheduled or key.startswith("initial_"):
            continue
        before = group.get(key)
        if key not in group or as_plain(before) != as_plain(now):
            yield key, before, now


def _check_changeable(key: str, before: Any, now: Any) -> None:
    # torch makes the buffer of a momentum only in a first step.
    if key not in CHANGEABLE or (key == "momentum" and not before):
        raise ConfigError(
            f"--resume: optimizer.{key} is {before} in the checkpoint and {now} in the config, which cannot change in "
            f"the middle of a training: {START_ANEW}"
        )


def _scaler_settings(wrapper: Any) -> dict[str, Any]:
    scaler = getattr(wrapper, "loss_scaler", None)
    state = scaler.state_dict() if scaler is not None else {}
    return {key: state[key] for key in SCALER_SETTINGS if key in state}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
