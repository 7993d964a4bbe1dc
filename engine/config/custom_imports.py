"""Import the modules that a config and its bases name in ``custom_imports``."""

from __future__ import annotations

import ast
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config import config as config_module
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import get_installed_path, import_modules_from_strings

from backbones.errors import ConfigError, UserError, describe_error, nearest
from backbones.files import describe_special, read_text_file
from backbones.packages import missing_package, missing_package_error
from convnext_dense import PACKAGES, refuse_namesakes
from engine.launch.leftovers import process_folder

_PACKAGED = "/.mim/configs"  # in the installed package of a library


def _folder_for_copies() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=process_folder())


# mmengine copies the files that it reads to temporary folders, which a kill leaves behind.
_mmengine: Any = config_module
_mmengine.tempfile = SimpleNamespace(
    TemporaryDirectory=_folder_for_copies, NamedTemporaryFile=tempfile.NamedTemporaryFile
)


def read_config(path: Path) -> Config:
    """Read a config file and import the modules of its ``custom_imports`` and of all its bases'.

    mmengine lets the list of a file replace the list of its base, so that a config which names a module with one
    transform of its own would lose the task's package.

    Args:
        path: Config file.

    Raises:
        ConfigError: If ``custom_imports`` is not ``dict(imports=[...])``, or a module in it is not found.
        MachineError: If a package that a module imports is missing.
        ImportError: If another module has the name of a package of this project.
        Exception: Whatever the file, or an import, raises.
    """
    # A library is found by its own name: its distribution may have another one than mmengine lists, as those here have.
    MODULE2PACKAGE.update({library: library for library in MODULE2PACKAGE})
    refuse_bases(path)
    cfg = Config.fromfile(str(path), import_custom_modules=False)
    names = list(dict.fromkeys(_imported_modules(path)))
    refuse_namesakes(*(name for name in names if name in PACKAGES))
    if names:
        stated = cfg.get("custom_imports") or {}
        cfg.custom_imports = ConfigDict({**stated, "imports": names})
        try:
            import_modules_from_strings(**cfg.custom_imports)
        except ImportError as error:
            raise _import_failure(path, error, names) from error
    return cfg


def refuse_bases(path: Path, inner: tuple[Path, ...] = ()) -> None:
    """Refuse pipes and the like among a config's bases, and circles: mmengine would wait for them, or never end.

    A misspelt base of a library is refused with the nearest ones.

    Args:
        path: The config's file, or one of its bases.
        inner: Files that lead to it.

    Raises:
        ConfigError: With the first one.
    """
    if special := describe_special(path):
        raise ConfigError(f"config {str(path)!r} {special}")
    if path.absolute() in inner:
        raise ConfigError(f"config {str(inner[0])!r} cannot be read: its _base_ files lead back to one another")
    names: list[str] = []
    with suppress(Exception):  # what else is wrong with a file mmengine says
        names = _stated_bases(path, read_text_file(path, "utf-8"))
    for name in names:
        if isinstance(name, str) and (base := _found_base(path, name)) is not None:
            refuse_bases(base, (*inner, path.absolute()))


def _found_base(path: Path, name: str) -> Path | None:
    """File of a base; ``None`` for a library that is not installed.

    Raises:
        ConfigError: If a library, or its config, is misspelt.
    """
    library, _, known = name.rpartition("::")
    place = f"config {str(path)!r} cannot be read: _base_ {name!r}"
    if library and library not in MODULE2PACKAGE:
        raise ConfigError(f"{place}: there is no library {library!r}{nearest(library, MODULE2PACKAGE)}")
    try:
        base = _base_file(path, name)
    except ImportError:
        return None
    if library and not base.is_file():
        folder = Path(_configs_folder(library))
        others = (file.relative_to(folder).as_posix() for file in folder.rglob("*.py"))
        raise ConfigError(f"{place}: the installed {library} has no such config{nearest(known, others)}")
    return base


def _import_failure(path: Path, error: ImportError, names: list[str]) -> UserError:
    """Error that says why a module cannot be imported: mmengine says which."""
    place, cause = f"config {str(path)!r}: custom_imports: {error}", error.__context__ or error
    absent = f"{cause.name}." if isinstance(cause, ModuleNotFoundError) else "."
    if any(f"{name}.".startswith(absent) for name in names):
        parts = absent.split(".")
        ours = f"; {parts[0]!r} is this project's, and a module of yours needs another name"
        return ConfigError(
            f"{place}: it is neither in this project's folder nor on PYTHONPATH{ours if parts[0] in PACKAGES else ''}"
        )
    if package := missing_package(error):
        return missing_package_error(package, place)
    return ConfigError(f"{place}: {describe_error(cause)}")


def _imported_modules(path: Path) -> list[str]:
    """Modules that a config file and its bases name, those of the bases first."""
    text = read_text_file(path, "utf-8")
    # A library's import what is not here.
    bases = [base for base in base_files(path, text) if _PACKAGED not in str(base)]
    names = [name for base in bases for name in _imported_modules(base)]
    if "custom_imports" not in text:
        return names
    stated = Config.fromfile(str(path), import_custom_modules=False).get("custom_imports") or {}
    imports = stated.get("imports") if isinstance(stated, dict) else stated
    imports = [imports] if isinstance(imports, str) else imports or []
    if not (isinstance(stated, dict) and isinstance(imports, list) and all(isinstance(name, str) for name in imports)):
        raise ConfigError(f"custom_imports={stated!r}: write dict(imports=['module', ...])")
    return names + imports


def base_files(path: Path, text: str) -> list[Path]:
    """Files that ``_base_`` of a Python config states; none of another format, which mmengine merges by itself.

    Args:
        path: The config's file.
        text: Its contents.
    """
    return [_base_file(path, name) for name in _stated_bases(path, text)]


def _stated_bases(path: Path, text: str) -> list[str]:
    """What ``_base_`` of a Python config states: paths, those of a library behind its name and ``::``."""
    if path.suffix != ".py":
        return []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and "_base_" in (ast.unparse(name) for name in node.targets):
            stated = eval(compile(ast.Expression(node.value), str(path), "eval"), {})  # a program, as mmengine takes it
            return [stated] if isinstance(stated, str) else list(stated)
    return []


def _base_file(path: Path, name: str) -> Path:
    """File of a base that a config states."""
    library, _, inner = name.rpartition("::")
    return Path(_configs_folder(library) if library else path.parent, inner)


def _configs_folder(library: str) -> str:
    """Folder of the configs of an installed library."""
    folder: str = get_installed_path(library)
    return folder + _PACKAGED
