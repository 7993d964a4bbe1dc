"""Several processes of one run: their group and GPUs, sharding, and what they agree on.

``processes`` joins the group, ``sharding`` spreads model and optimizer over it (FSDP2), ``consistency`` checks that all
have the same devices and data, and ``agreement`` shares decisions such as a request to stop.
"""

from engine.distributed.agreement import Agreement, StopRequest
from engine.distributed.processes import start_processes
from engine.distributed.sharding import gather_whole, shard_model, shard_optimizer, unwrapped

__all__ = [
    "Agreement",
    "StopRequest",
    "gather_whole",
    "shard_model",
    "shard_optimizer",
    "start_processes",
    "unwrapped",
]
