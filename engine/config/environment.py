"""The settings of ``env_cfg``: mmengine's and this project's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backbones.errors import ConfigError
from engine.config.batch import BatchPlan
from engine.config.schema import is_whole

ENVIRONMENT_KEYS = (
    *("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"),  # mmengine's
    *("sharded", "compile", "nonfinite", "noise_scale", "patience"),
)
NONFINITE_ACTIONS = ("stop", "roll_back", "ignore")


@dataclass(frozen=True)
class NonFinitePolicy:
    """The setting ``env_cfg.nonfinite``: the name of an action, or a mapping with these keys.

    Attributes:
        action: ``stop``, ``roll_back`` or ``ignore``.
        max_rollbacks: Maximum number of rollbacks in a run, at least 1; one event more stops it. The former name,
            ``most``, is accepted.
        window: Number of steps, up to and including that of the event, that are skipped after a rollback.
    """

    action: str = "stop"
    max_rollbacks: int = 3
    window: int = 1

    @classmethod
    def from_setting(cls, setting: Any) -> NonFinitePolicy:
        """Read the value of ``env_cfg.nonfinite``.

        Raises:
            ConfigError: If it is neither an action nor a mapping of these settings.
        """
        values = {"action": setting} if isinstance(setting, str) else setting
        if isinstance(values, Mapping) and "most" in values:
            values = {"max_rollbacks": values["most"], **{key: value for key, value in values.items() if key != "most"}}
        if not isinstance(values, Mapping) or not values.keys() <= {"action", "max_rollbacks", "window"}:
            raise ConfigError(
                f"env_cfg.nonfinite={setting!r}: one of {', '.join(NONFINITE_ACTIONS)}, or a mapping such as "
                "dict(action='roll_back', max_rollbacks=3, window=1)"
            )
        built = cls(**values)
        if built.action not in NONFINITE_ACTIONS:
            raise ConfigError(f"env_cfg.nonfinite: action={built.action!r}: choose from {', '.join(NONFINITE_ACTIONS)}")
        for name in ("max_rollbacks", "window"):
            value = getattr(built, name)
            if not is_whole(value, 1):
                raise ConfigError(f"env_cfg.nonfinite: {name}={value!r}: a positive whole number is needed")
        return built


def check_environment(settings: dict[str, Any]) -> None:
    """Check the names in the mapping ``env_cfg`` of a config, and its policy for steps that are not finite.

    Raises:
        ConfigError: For the first setting that does not exist, or a wrong policy.
    """
    for key in settings:
        if key not in ENVIRONMENT_KEYS:
            near = (difflib.get_close_matches(key, ENVIRONMENT_KEYS, n=1) or [", ".join(ENVIRONMENT_KEYS)])[0]
            raise ConfigError(f"env_cfg has no setting {key!r}; nearest: {near}")
    NonFinitePolicy.from_setting(settings.get("nonfinite", "stop"))


def check_noise_scale(settings: Mapping[str, Any], plan: BatchPlan) -> None:
    """Refuse ``env_cfg.noise_scale`` where there are no gradients of two numbers of images.

    Args:
        settings: The config's ``env_cfg``.
        plan: Division of the batch.

    Raises:
        ConfigError: With sharding, or in one process without accumulation.
    """
    if not settings.get("noise_scale"):
        return
    if settings.get("sharded"):
        raise ConfigError("env_cfg.noise_scale: not with env_cfg.sharded, which never has the gradients of one process")
    if plan.processes * plan.accumulation == 1:
        size = next((part for part in range(plan.global_batch // 2, 0, -1) if plan.global_batch % part == 0), 0)
        fix = f": accumulate, --cfg-options batch.per_gpu={size}, or use several processes" if size else ""
        raise ConfigError(
            f"env_cfg.noise_scale: one process without accumulation has gradients of {plan.global_batch} images alone"
            f"{fix}"
        )
