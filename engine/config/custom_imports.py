"""Import the modules that a config and its bases name in ``custom_imports``."""

from __future__ import annotations

import ast
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings

from backbones.errors import ConfigError


def read_config(path: Path) -> Config:
    """Read a config file and import the modules of its ``custom_imports`` and of all its bases'.

    mmengine lets the list of a file replace the list of its base, so that a config which names a module with one
    transform of its own would lose the task's package.

    Args:
        path: Config file.

    Raises:
        ConfigError: If ``custom_imports`` is not ``dict(imports=[...])``.
        Exception: Whatever the file, or an import, raises.
    """
    cfg = Config.fromfile(str(path), import_custom_modules=False)
    names = list(dict.fromkeys(_imported_modules(path)))
    if names:
        stated = cfg.get("custom_imports") or {}
        cfg.custom_imports = ConfigDict({**stated, "imports": names})
        import_modules_from_strings(**cfg.custom_imports)
    return cfg


def _imported_modules(path: Path) -> list[str]:
    """Modules that a config file and its bases name, those of the bases first."""
    text = path.read_text(encoding="utf-8")
    names = [name for base in _bases(path, text) for name in _imported_modules(base)]
    if "custom_imports" not in text:
        return names
    stated = Config.fromfile(str(path), import_custom_modules=False).get("custom_imports") or {}
    imports = stated.get("imports") if isinstance(stated, dict) else stated
    imports = [imports] if isinstance(imports, str) else imports or []
    if not (isinstance(stated, dict) and isinstance(imports, list) and all(isinstance(name, str) for name in imports)):
        raise ConfigError(f"custom_imports={stated!r}: write dict(imports=['module', ...])")
    return names + imports


def _bases(path: Path, text: str) -> list[Path]:
    """Files that ``_base_`` of a Python config states; none of another format, which mmengine merges by itself."""
    if path.suffix != ".py":
        return []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and "_base_" in (ast.unparse(name) for name in node.targets):
            stated = eval(compile(ast.Expression(node.value), str(path), "eval"), {})  # a program, as mmengine takes it
            files = [path.parent / name for name in ([stated] if isinstance(stated, str) else stated)]
            return [file for file in files if file.is_file()]  # another library's (mmdet::...) is not a file
    return []
