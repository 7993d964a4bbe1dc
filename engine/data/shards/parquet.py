"""Headers of parquet files as Hugging Face has them: an image in ``image.bytes``, its class in ``label``.

Only pyarrow knows where the bytes of an image are: a row group is decoded for each. With few images in a group, as
``tools/make_shards.py`` writes them, this costs little.
"""

from __future__ import annotations

import json
from typing import Any

from backbones.errors import DataError, first_line, printable
from backbones.file_kinds import SIGNATURE_BYTES, describe_content
from backbones.files import open_file
from backbones.packages import is_absent, missing_package_error
from engine.data.shards.headers import HeaderList, ShardHeaders
from engine.data.stored_image import Coding

PARQUET_PACKAGE = "pyarrow"


def read_parquet(path: str, copy: str | None = None) -> ShardHeaders:
    """Headers of a parquet file.

    Args:
        path: The file.
        copy: File to read in its place, of a shard of a store.

    Raises:
        DataError: If it is damaged, or has no such columns.
        MachineError: If pyarrow is not installed.
        OSError: If it cannot be read.
    """
    if is_absent(PARQUET_PACKAGE):
        raise missing_package_error(PARQUET_PACKAGE, printable(path))
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with open_file(copy or path) as opened:
        head = opened.read(SIGNATURE_BYTES)
    try:
        with ParquetFile(copy or path) as file:
            _check_columns(path, file.schema_arrow)
            classes = _class_names(file.schema_arrow)
            found = HeaderList(path)
            first = 0
            for group in range(file.num_row_groups):
                first += _add_group(found, file, group, first)
    except (ArrowException, OSError) as error:
        reason = describe_content(head) or f"is damaged or cut off: {first_line(error, 120)}"
        raise DataError(f"{printable(path)}: {reason}") from error
    return found.finish(classes)


def _check_columns(path: str, schema: Any) -> None:
    names = schema.names
    fields = (
        [schema.field("image").type.field(i).name for i in range(schema.field("image").type.num_fields)]
        if ("image" in names)
        else []
    )
    if "bytes" not in fields or "label" not in names:
        raise DataError(f"{printable(path)}: columns image.bytes and label are needed, it has {', '.join(names[:8])}")


def _class_names(schema: Any) -> tuple[str, ...]:
    """Names of the classes in the metadata that Hugging Face's datasets write."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _add_group(found: HeaderList, file: Any, group: int, first: int) -> int:
    """Add the rows of a row group, whose images are not read; returns their number."""
    schema = file.schema_arrow
    kind = schema.field("image").type
    named = "path" in [kind.field(i).name for i in range(kind.num_fields)]
    columns = file.read_row_group(group, columns=["label", *(["image.path"] if named else [])], use_threads=False)
    paths = columns["image"].combine_chunks().field("path").to_pylist() if named else [None] * len(columns)
    for row, (label, path) in enumerate(zip(columns["label"].to_pylist(), paths)):
        if not isinstance(label, int | str) or isinstance(label, bool):
            raise DataError(f"{printable(found.path)}: row {first + row} has the label {label!r}: a class is needed")
        found.add(path or f"{first + row:09d}", label, (group << 32) + row, 0, Coding.PARQUET)
    return len(columns)
