"""The record of a run in its work directory, and the self-contained pages made of it.

``environment`` collects versions and machine, ``run_dir`` reads what is in the directory, ``html`` has the parts of
pages. ``recorder`` and ``training`` write record and report; they need mmengine: import them by their own names.
"""

from engine.report.environment import code_state, environment, machine, versions
from engine.report.run_dir import read_curves, read_json, read_starts, write_json

__all__ = ["code_state", "environment", "machine", "read_curves", "read_json", "read_starts", "versions", "write_json"]
