"""Training data of all tasks: checked before a run, read in an order that follows from the step, kept from stopping it.

``checker`` and ``check`` find what is wrong with data, ``preflight`` runs them before a training; ``sampling`` makes
data loaders resumable, ``block_shuffle`` reads few shards at a time; ``fault_tolerance`` replaces damaged images;
``balance`` repeats images of rare classes; ``image_files`` inspects and loads single files.
"""

from engine.data.balance import BalancedDataset
from engine.data.block_shuffle import BlockShuffleSampler
from engine.data.check import check_datasets
from engine.data.checker import DATA_CHECKERS, DataFile, DatasetChecker
from engine.data.fault_tolerance import FaultTolerantDataset
from engine.data.findings import DataCheckResult, DataFinding
from engine.data.image_files import DamagedImageError, LoadCheckedImage
from engine.data.preflight import check_before_test, check_before_training, check_data_paths
from engine.data.sampling import ResumableBatchSampler, SeededIndex, build_train_loader

__all__ = [
    "DATA_CHECKERS",
    "BalancedDataset",
    "BlockShuffleSampler",
    "DamagedImageError",
    "DataCheckResult",
    "DataFile",
    "DataFinding",
    "DatasetChecker",
    "FaultTolerantDataset",
    "LoadCheckedImage",
    "ResumableBatchSampler",
    "SeededIndex",
    "build_train_loader",
    "check_before_test",
    "check_before_training",
    "check_data_paths",
    "check_datasets",
]
