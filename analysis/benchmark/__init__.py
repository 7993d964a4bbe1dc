"""Speed of networks, data loading and detection beside other libraries, measured in turns.

:mod:`~analysis.benchmark.timing` takes the turns, :mod:`~analysis.benchmark.request` says what is measured and where.
``models``, ``loading`` and ``detection`` need mmengine, OpenCV and mmdet: import them by their own names.
"""

from analysis.benchmark.checkpointing import CheckpointingResult, measure_checkpointing
from analysis.benchmark.networks import SideTiming, ThroughputResult, measure_network, plot_throughput
from analysis.benchmark.paper_table import measure_paper_table
from analysis.benchmark.peers import Contender, contenders, randomize_weights
from analysis.benchmark.request import BenchmarkRequest, benchmark_environment, check_benchmark_request
from analysis.benchmark.timing import MismatchError, Speedup, quartiles, ratios, take_turns

__all__ = [
    "BenchmarkRequest",
    "CheckpointingResult",
    "Contender",
    "MismatchError",
    "SideTiming",
    "Speedup",
    "ThroughputResult",
    "benchmark_environment",
    "check_benchmark_request",
    "contenders",
    "measure_checkpointing",
    "measure_network",
    "measure_paper_table",
    "plot_throughput",
    "quartiles",
    "randomize_weights",
    "ratios",
    "take_turns",
]
