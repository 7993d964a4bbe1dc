"""Building the runner of a resolved config."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine import Config
from mmengine.dist import all_gather_object

from backbones.errors import MachineError
from engine.checkpoint.model_weights import LOADER_SETTINGS
from engine.config.building import building
from engine.config.fingerprint import make_fingerprint
from engine.config.load import Resolved
from engine.config.precision import share_products
from engine.config.world import Launch
from engine.distributed.consistency import check_same_data
from engine.distributed.processes import start_processes
from engine.launch.heartbeat import HEARTBEAT
from engine.training.noise_scale import NoiseScaleHook
from engine.training.runner import Runner

COMPILE_PATIENCE_SECONDS = 600.0  # of a step: what is compiled may be compiled again, for a shape that is new


class TrustingRunner(Runner):
    """A runner that executes code that checkpoints ask for (``--trust-checkpoint``)."""

    trust = True


def build_runner(resolved: Resolved, launch: Launch, trust: bool = False) -> Runner:
    """Build the runner of a resolved config and log what the launch decided.

    Args:
        resolved: Resolved config.
        launch: Processes and devices of the job.
        trust: Whether to execute code that checkpoints ask for (``--trust-checkpoint``).

    Raises:
        UserError: If the work directory cannot be written, or the config does not build.
    """
    start_processes(launch)
    cfg = resolved.cfg
    taken = {"classes": f"classes {cfg.get('classes')}"[:80] + f" (digest {make_fingerprint(cfg.get('classes'))[:8]})"}
    check_same_data("training", all_gather_object(taken))  # each process may have taken them from its own files
    share_products(cfg)
    settings = cfg.get("env_cfg", {})
    make_work_dir(cfg)
    compile_patience = COMPILE_PATIENCE_SECONDS if settings.get("compile") else 0.0
    HEARTBEAT.configure(cfg.work_dir, settings.get("patience") or compile_patience)
    LOADER_SETTINGS.trust = trust
    with building(cfg, "default_hooks", "custom_hooks", "visualizer", "log_processor", "model"):
        runner = (TrustingRunner if trust else Runner).from_cfg(cfg)
    if resolved.plan is not None:
        runner.logger.info("batch: %s", resolved.plan)
        if settings.get("noise_scale"):
            runner.register_hook(NoiseScaleHook(resolved.plan))
    for note in resolved.notes:
        runner.logger.info(note)
    return runner


def make_work_dir(cfg: Config) -> None:
    """Make the work directory.

    Args:
        cfg: Resolved config.

    Raises:
        MachineError: If it cannot be written.
    """
    try:
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
        writable = os.access(cfg.work_dir, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise MachineError(f"work_dir {cfg.work_dir!r} cannot be written: choose another with --work-dir")
