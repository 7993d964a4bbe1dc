"""Digests of all that a result depends on, so that finished work is found again and never mistaken for other work."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mmengine.config import Config


def make_fingerprint(*parts: Any) -> str:
    """SHA-256 of plain data as a hexadecimal string; values that are not JSON count by their ``repr``."""
    return hashlib.sha256(json.dumps(parts, default=repr, sort_keys=True).encode()).hexdigest()


def config_values(path: str) -> dict[str, Any]:
    """Values of a config file with those of its bases: comments and the order of the keys do not count."""
    return Config.fromfile(path, import_custom_modules=False).to_dict()
