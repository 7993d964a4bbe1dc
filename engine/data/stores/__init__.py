"""Shards in object stores and on web servers: listed and fetched by fsspec, kept on disk while they are needed.

``access`` is all that talks to a store, with retries; ``cache`` holds whole shards, for all processes of a machine;
``read_ahead`` fetches those that come next in a process of its own.
"""

from engine.data.stores.access import Stored, is_store_url, list_store, stored_states
from engine.data.stores.cache import ShardCache
from engine.data.stores.read_ahead import ReadAhead

__all__ = ["ReadAhead", "ShardCache", "Stored", "is_store_url", "list_store", "stored_states"]
