"""The methods that the installed packages bring: a folder of configs each, and the config that is tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from backbones.errors import ConfigError, MachineError
from engine.task import TASK_SPECS, TaskSpec, ZooSpec

METHOD = "method"
# Words of file names, from the plainest network to the ones that need most memory.
PLAIN, LARGE = ("r50", "r18"), ("r101", "x101", "amp", "caffe", "ms-", "lsj", "tta", "syncbn", "strong")


@dataclass(frozen=True)
class Method:
    """A folder of configs.

    Attributes:
        task: Task to which it belongs.
        folder: Name of the folder.
        config: The config that is tried.
        excluded: Reason why it is not tried; empty for one that is.
        kind: Contents of the folder: :data:`METHOD`, or as the task's ``ZooSpec`` says.
        bound: Reason why it works on no backbone but its own; empty if there is none.
    """

    task: TaskSpec
    folder: str
    config: Path
    excluded: str = ""
    kind: str = METHOD
    bound: str = ""

    @property
    def package(self) -> str:
        """Name of the package that brings it."""
        assert self.task.zoo is not None
        return self.task.zoo.package


def tasks_by_package() -> dict[str, TaskSpec]:
    """The registered tasks with a package of methods, by its name."""
    return {task.zoo.package: task for task in TASK_SPECS.values() if task.zoo is not None}


def _configs_folder(package: str) -> Path:
    """The folder of a package's configs.

    Raises:
        MachineError: If the package is not installed, or came without configs.
    """
    found = find_spec(package)
    folder = Path(next(iter(found.submodule_search_locations or [""]))) / ".mim/configs" if found else Path()
    if found is None or not folder.is_dir():
        raise MachineError(f"{package} has no configs here: install it from its wheel, which brings .mim/configs")
    return folder


def _simplest(folder: Path) -> Path:
    """The config of a folder with the plainest name."""
    configs = [path for path in folder.glob("*.py") if not path.name.startswith("_")]

    def rank(path: Path) -> tuple[bool, int, int, str]:
        name = path.name
        return not any(word in name for word in PLAIN), sum(word in name for word in LARGE), len(name), name

    return min(configs, key=rank)


def all_methods(task: TaskSpec) -> list[Method]:
    """Every method of a task's package by name, those out of scope too.

    Raises:
        MachineError: If the package's configs are not here.
    """
    zoo = task.zoo
    assert isinstance(zoo, ZooSpec)
    folders = [
        folder
        for folder in sorted(_configs_folder(zoo.package).iterdir())
        if not folder.name.startswith("_") and next(folder.glob("*.py"), None)
    ]
    return [
        Method(
            task,
            folder.name,
            folder / zoo.configs[folder.name] if folder.name in zoo.configs else _simplest(folder),
            zoo.out_of_scope.get(folder.name, ""),
            zoo.kinds.get(folder.name, METHOD),
            zoo.bound.get(folder.name, ""),
        )
        for folder in folders
    ]


def chosen_methods(packages: Sequence[str], names: Sequence[str]) -> list[Method]:
    """The methods of packages, all or those of some names.

    Args:
        packages: Names of packages.
        names: Names of folders; empty for all.

    Raises:
        ConfigError: If no package has a method of one of the names.
        MachineError: If a package's configs are not here.
    """
    methods = [method for package in packages for method in all_methods(tasks_by_package()[package])]
    known = {method.folder for method in methods}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known) or sorted(known)
            raise ConfigError(f"{' and '.join(packages)} has no method {name!r}: did you mean {', '.join(near)}?")
    return [method for method in methods if not names or method.folder in names]
