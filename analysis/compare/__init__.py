"""Trainings compared from their run folders, as one page and as JSON.

``runs`` reads the folders and puts seeds of one setting together, ``differences`` finds the settings that differ,
``scores`` tells how certain differences of scores are, ``images`` finds images of which one prediction is right and
another is wrong, and ``page`` writes it all.
"""

from analysis.compare.page import ComparisonPage, compare_trainings

__all__ = ["ComparisonPage", "compare_trainings"]
