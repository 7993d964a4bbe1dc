"""Several processes of one run: their group and GPUs, sharding, and what they agree on.

``processes`` joins the group, ``sharding`` spreads model and optimizer over it (FSDP2), ``consistency`` checks that all
have the same devices and data, and ``agreement`` shares decisions such as a request to stop.
"""

from engine.distributed.agreement import Agreement, StopRequest
from engine.distributed.consistency import check_devices, check_same_data, describe_loader
from engine.distributed.processes import start_processes, take_gpu
from engine.distributed.sharding import (
    gather_whole,
    local,
    reshard,
    shard_like,
    shard_model,
    shard_optimizer,
    unwrapped,
)

__all__ = [
    "Agreement",
    "StopRequest",
    "check_devices",
    "check_same_data",
    "describe_loader",
    "gather_whole",
    "local",
    "reshard",
    "shard_like",
    "shard_model",
    "shard_optimizer",
    "start_processes",
    "take_gpu",
    "unwrapped",
]
