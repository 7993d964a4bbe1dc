"""``trackers`` of a config: where a training is followed besides TensorBoard and its own report."""

from __future__ import annotations

from mmengine.config import Config

from backbones.errors import ConfigError

TRACKERS = {"wandb": "WandbTracker", "mlflow": "MlflowTracker"}  # name in a config -> class of engine.report.trackers
PICTURES_HOOK = "ValidationPicturesHook"  # of engine.prediction, which draws what trackers hand over


def set_trackers(cfg: Config) -> None:
    """Give the visualizer a backend for each of the config's ``trackers``, and them pictures to show, in place.

    Raises:
        ConfigError: If a name is unknown.
    """
    asked = cfg.get("trackers") or ()
    if not isinstance(asked, list | tuple) or (set(map(str, asked)) - TRACKERS.keys()):
        known = ", ".join(f'"{name}"' for name in TRACKERS)
        raise ConfigError(f"trackers={asked!r}: a list of {known} is needed; TensorBoard's files are written anyway")
    if not asked:
        return
    if not cfg.get("visualizer"):
        cfg.visualizer = {"type": "Visualizer"}
    backends = cfg.visualizer.get("vis_backends") or []
    backends = [backends] if isinstance(backends, dict) else list(backends)
    there = {backend["type"] for backend in backends}
    cfg.visualizer["vis_backends"] = backends + [
        {"type": TRACKERS[name]} for name in asked if TRACKERS[name] not in there
    ]
    hooks = list(cfg.get("custom_hooks") or [])
    if all(hook["type"] != PICTURES_HOOK for hook in hooks):
        cfg.custom_hooks = [*hooks, {"type": PICTURES_HOOK}]
