"""Fingerprints find finished work again, of this version and of the ones before."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.config.fingerprint import config_values, make_fingerprint


def test_a_fingerprint_is_the_hash_of_sorted_json() -> None:
    """Files of finished work hold it: another spelling would have all of it done again."""
    text = '[{"a": 1, "b": [1.5, "x"]}, null, "PosixPath(\'c\')"]'
    assert make_fingerprint({"b": (1.5, "x"), "a": 1}, None, Path("c")) == hashlib.sha256(text.encode()).hexdigest()


def test_comments_and_the_order_of_keys_do_not_count(tmp_path: Path) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("a = 1\nb = dict(c=2, d=3)\n")
    second.write_text("# a comment\nb = dict(d=3, c=2)\na = 1\n")
    assert make_fingerprint(config_values(str(first))) == make_fingerprint(config_values(str(second)))
    second.write_text("a = 2\nb = dict(d=3, c=2)\n")
    assert make_fingerprint(config_values(str(first))) != make_fingerprint(config_values(str(second)))
