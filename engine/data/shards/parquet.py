"""Headers of parquet files as Hugging Face has them: an image in ``image.bytes``, its class in ``label``."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from backbones.errors import DataError, first_line, printable
from backbones.file_kinds import SIGNATURE_BYTES, describe_content
from backbones.files import open_file
from backbones.packages import is_absent, missing_package_error
from engine.data.parquet_pages import list_values, page_column
from engine.data.shards.headers import ShardHeaders, refuse_long, refuse_negative
from engine.data.stored_image import IMAGE_COLUMN, Coding

PARQUET_PACKAGE = "pyarrow"
PATH_COLUMN = "image.path"


def read_parquet(path: str, copy: str | None = None) -> ShardHeaders:
    """Headers of a parquet file.

    Args:
        path: The file.
        copy: File to read in its place, of a shard of a store.

    Raises:
        DataError: If it is damaged, has no such columns, or its images are stored in a way that is not read.
        MachineError: If pyarrow is not installed.
        OSError: If it cannot be read.
    """
    if is_absent(PARQUET_PACKAGE):
        raise missing_package_error(PARQUET_PACKAGE, printable(path))
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with open_file(copy or path) as opened:
        head = os.pread(opened.fileno(), SIGNATURE_BYTES, 0)
        try:
            with ParquetFile(copy or path) as file:
                _check_columns(path, file.schema_arrow)
                labels, names = _labels(path, file), _names(file)
                offsets, sizes, codings = _images(opened.fileno(), file)
                classes = _class_names(file.schema_arrow)
        except DataError:
            raise
        except NotImplementedError as error:
            raise DataError(f"{printable(path)}: {first_line(error)}") from error
        except (ArrowException, OSError, ValueError) as error:
            reason = describe_content(head) or f"is damaged or cut off: {first_line(error, 120)}"
            raise DataError(f"{printable(path)}: {reason}") from error
    refuse_long(max(names, key=len, default=b""), int(sizes.max(initial=0)), path)
    refuse_negative(labels, path)
    return ShardHeaders(np.array(names, np.bytes_), labels, offsets, sizes, codings, classes, "nowhere")


def _check_columns(path: str, schema: Any) -> None:
    names = schema.names
    fields = (
        [schema.field("image").type.field(i).name for i in range(schema.field("image").type.num_fields)]
        if ("image" in names)
        else []
    )
    if "bytes" not in fields or "label" not in names:
        has = ", ".join(f"{name} ({schema.field(at).type!s:.40})" for at, name in enumerate(names[:8]))
        raise DataError(f"{printable(path)}: columns image.bytes and label are needed, it has {printable(has)}")


def _class_names(schema: Any) -> tuple[str, ...]:
    """Names of the classes in the metadata that Hugging Face's datasets write."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _labels(path: str, file: Any) -> np.ndarray:
    """Label of each row."""
    import pyarrow

    column = file.read(columns=["label"], use_threads=False)["label"]
    kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    types = pyarrow.types
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise DataError(f"{printable(path)}: row {row} has no label: a class is needed")
    if len(column) and not (text or types.is_integer(kind)):
        reason = f"column label has {column.type}, such as {column[0].as_py()!r:.40}"
        raise DataError(f"{printable(path)}: {printable(reason)}: whole numbers or names of classes are needed")
    if text:
        return np.array([label.encode() for label in column.to_pylist()], np.bytes_)
    return np.asarray(column.cast(pyarrow.int64()).to_numpy())


def _names(file: Any) -> list[bytes]:
    """Name of each image: its path, or its number where it has none."""
    kind = file.schema_arrow.field("image").type
    if "path" not in [kind.field(i).name for i in range(kind.num_fields)]:
        return [b"%09d" % row for row in range(file.metadata.num_rows)]
    column = file.read(columns=[PATH_COLUMN], use_threads=False)["image"].combine_chunks()
    paths = column.field("path").to_pylist()
    return [path.encode() if path else b"%09d" % row for row, path in enumerate(paths)]


def _images(opened: int, file: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place, size and form of each image, see :class:`engine.data.stored_image.StoredImage`."""
    number, column = page_column(file, IMAGE_COLUMN)
    found = []
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        part = group.column(number)
        first = min(place for place in (part.dictionary_page_offset, part.data_page_offset) if place)
        told = part.statistics
        nulls = told is None or not told.has_null_count or told.null_count > 0
        found.append(list_values(opened, column, first, group.num_rows, nulls))
    offsets, sizes = map(np.concatenate, zip(*found)) if found else (np.empty(0, np.uint64), np.empty(0, np.uint32))
    # No page begins at 0: this is no image, whose bytes are none.
    paged = (offsets > 0) & bool(column.codec)
    return offsets, sizes, np.where(paged, Coding.PAGE, Coding.STORED).astype(np.uint16)
