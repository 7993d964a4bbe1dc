"""The settings of ``env_cfg``: mmengine's own, and this project's ways of running the same training otherwise."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backbones.errors import UserError
from engine.config.schema import is_number

# mmengine's settings of the environment, and this project's two ways of running the same training otherwise.
ENVIRONMENT = ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit", "sharded", "compile", "nonfinite", "patience")
ACTIONS = ("stop", "roll_back", "ignore")


@dataclass(frozen=True)
class NonFinitePolicy:
    """The setting ``env_cfg.nonfinite``: an action's name, or a mapping of these.

    Attributes:
        action: ``stop``, ``roll_back`` or ``ignore``.
        max_rollbacks: Number of rollbacks in a run; one more event stops it. Formerly ``most``, which is still
        accepted. window: Number of steps, up to and including the one of the event, that are skipped after a rollback.
    """

    action: str = "stop"
    max_rollbacks: int = 3
    window: int = 1

    @classmethod
    def from_setting(cls, setting: Any) -> NonFinitePolicy:
        """Read the setting.

        Raises:
            UserError: If it is none.
        """
        values = {"action": setting} if isinstance(setting, str) else setting
        if isinstance(values, Mapping) and "most" in values:
            values = {"max_rollbacks": values["most"], **{key: value for key, value in values.items() if key != "most"}}
        if not isinstance(values, Mapping) or not values.keys() <= {"action", "max_rollbacks", "window"}:
            raise UserError(
                f"env_cfg.nonfinite={setting!r}: one of {', '.join(ACTIONS)}, or a mapping such as "
                "dict(action='roll_back', max_rollbacks=3, window=1)"
            )
        built = cls(**values)
        if built.action not in ACTIONS:
            raise UserError(f"env_cfg.nonfinite: action={built.action!r}: choose from {', '.join(ACTIONS)}")
        for name in ("max_rollbacks", "window"):
            value = getattr(built, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"env_cfg.nonfinite: {name}={value!r}: a positive whole number is needed")
        return built


def check_environment(settings: dict[str, Any]) -> None:
    """Refuse a setting of ``env_cfg`` that nothing reads.

    Raises:
        UserError: With its name.
    """
    for key in settings:
        if key not in ENVIRONMENT:
            near = (difflib.get_close_matches(key, ENVIRONMENT, n=1) or [", ".join(ENVIRONMENT)])[0]
            raise UserError(f"env_cfg has no setting {key!r}; nearest: {near}")
    if not isinstance(settings.get("sharded", False), bool):
        raise UserError(f"env_cfg.sharded={settings['sharded']!r}: True or False")
    NonFinitePolicy.from_setting(settings.get("nonfinite", "stop"))
    if not isinstance(settings.get("compile", False), bool | dict):
        raise UserError(f"env_cfg.compile={settings['compile']!r}: True, False or arguments of torch.compile")
    patience = settings.get("patience")
    if patience is not None and not (is_number(patience) and patience > 0):
        raise UserError(f"env_cfg.patience={patience!r}: seconds that a step may take at most, more than 0")
