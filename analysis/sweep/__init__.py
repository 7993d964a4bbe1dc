"""Sweeps: many trainings that differ in some settings, run from one controller and compared with their noise.

:mod:`~analysis.sweep.results` holds what a study has found, as everything that reads a study gets it.
"""

from analysis.sweep.results import Objective, StudyResult, TrialResult, read_study

__all__ = ["Objective", "StudyResult", "TrialResult", "read_study"]
