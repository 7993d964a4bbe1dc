"""Speed of networks, data loading and detection beside other libraries, measured in turns.

:mod:`~analysis.benchmark.timing` takes the turns, :mod:`~analysis.benchmark.request` says what is measured and where.
``models``, ``loading`` and ``detection`` need mmengine, OpenCV and mmdet: import them by their own names.
"""

from analysis.benchmark.checkpointing import CheckpointingResult, measure_checkpointing
from analysis.benchmark.networks import ThroughputResult, measure_network, plot_throughput
from analysis.benchmark.paper_table import measure_paper_table
from analysis.benchmark.request import BenchmarkRequest, benchmark_environment
from analysis.benchmark.timing import MismatchError, take_turns

__all__ = [
    "BenchmarkRequest",
    "CheckpointingResult",
    "MismatchError",
    "ThroughputResult",
    "benchmark_environment",
    "measure_checkpointing",
    "measure_network",
    "measure_paper_table",
    "plot_throughput",
    "take_turns",
]
