"""The doctor: is this machine fit to train?

`examination` runs groups of checks (`software`, `hardware`, `network`, `data`, `trial`) and turns whatever happens into
lines with a fix. Only `examination` is imported here, since it works where the installation is broken.
"""

from analysis.doctor.examination import CheckResult, DoctorOptions, diagnose, write_results

__all__ = ["CheckResult", "DoctorOptions", "diagnose", "write_results"]
