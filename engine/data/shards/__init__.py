"""Images in shards: WebDataset tars, parquet files of Hugging Face, zip files; listed once, then read in place.

``find`` says which files are the shards of a split; ``headers``, ``archives`` and ``parquet`` read where their images
are, and ``table`` keeps this in a memory-mapped file. ``unpacked`` finds files of data sets in archives that were not
unpacked. What an image needs to be read is in :mod:`engine.data.stored_image`.
"""

from engine.data.shards.find import Shards, find_shards
from engine.data.shards.table import ClassRows, ShardLayout, ShardTable, open_table, shard_states

__all__ = ["ClassRows", "ShardLayout", "ShardTable", "Shards", "find_shards", "open_table", "shard_states"]
