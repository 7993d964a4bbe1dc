"""The report of a study: ``study.html`` for people, ``study.json`` and ``trials.csv`` for programs."""

from analysis.sweep.report.findings import StudyFindings, find_answers
from analysis.sweep.report.page import render_study, write_study_report

__all__ = ["StudyFindings", "find_answers", "render_study", "write_study_report"]
