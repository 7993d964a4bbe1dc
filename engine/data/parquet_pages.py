"""Values of a column of bytes in a parquet file, each found and read without the rest of its row group.

A row group has a column as a row of pages, each with a header: perhaps one that is a dictionary, then those of data. In
pages that are not compressed a value is read at its place in the file; otherwise its page is read, and no other.

Source: the Apache Parquet format, https://github.com/apache/parquet-format (README.md, Encodings.md,
src/main/thrift/parquet.thrift), and the compact protocol of Apache Thrift.
"""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

import numpy as np

DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
DATA_PAGES = (DATA_PAGE, DATA_PAGE_V2)
PLAIN_VALUES, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
# pyarrow's names in a file, and of the codec.
CODECS = {"UNCOMPRESSED": "", "SNAPPY": "snappy", "GZIP": "gzip", "BROTLI": "brotli", "ZSTD": "zstd", "LZ4": "lz4_raw"}
HEADER_BYTES = 2**8  # read at once, as nearly all headers are shorter
MAX_PAGE_HEADER_BYTES = 2**24
MAX_VARINT_BYTES = 10  # of 64 bits
MAX_NUMBER = 2**31 - 1  # of the format's sizes and counts
MAX_INDEX_BITS = 32  # of a number in a dictionary
_LENGTH = struct.Struct("<I")  # in front of a value, and of the levels of a page
_PLACE = np.dtype([("offset", np.uint64), ("size", np.uint32)])


class PageColumn(NamedTuple):
    """How the pages of a column are stored.

    Attributes:
        codec: pyarrow's name of their compression; empty for none.
        levels: Largest definition level: a value with a lower one is null. 0 if none can be null.
    """

    codec: str
    levels: int


def page_column(file: Any, path: str) -> tuple[int, PageColumn]:
    """Number of a column of a parquet file, and how its pages are stored.

    Args:
        file: pyarrow's ``ParquetFile``.
        path: Path of the column in the schema, such as ``image.bytes``.

    Raises:
        NotImplementedError: If there is no such column of bytes, or it is compressed in another way.
    """
    known, metadata = file.schema, file.metadata
    number = next((one for one in range(metadata.num_columns) if known.column(one).path == path), None)
    if (
        number is None
        or known.column(number).physical_type != "BYTE_ARRAY"
        or known.column(number).max_repetition_level
    ):
        raise NotImplementedError(f"column {path} has no bytes, or all of one length: write it as binary")
    codecs = {metadata.row_group(group).column(number).compression for group in range(metadata.num_row_groups)}
    if len(codecs) > 1 or not codecs <= CODECS.keys():
        raise NotImplementedError(f"column {path} is compressed by {' and '.join(sorted(codecs))}: write it again")
    codec = CODECS[codecs.pop()] if codecs else ""
    return number, PageColumn(codec, known.column(number).max_definition_level)


class _Page(NamedTuple):
    place: int  # of the header in the file
    start: int  # of the content
    size: int  # of the content in the file
    plain_size: int  # of the content, decompressed
    kind: int
    values: int
    encoding: int
    level_bytes: int  # in front of the values, never compressed; of pages of the second version
    compressed: bool


def list_values(file: int, column: PageColumn, first: int, rows: int, nulls: bool) -> tuple[np.ndarray, np.ndarray]:
    """Find the values of a column in a row group.

    Args:
        file: Descriptor of the open file.
        column: The column.
        first: First byte of its pages.
        rows: Number of rows.
        nulls: Whether a value may be null, which has place and size 0.

    Returns:
        First byte of each value in the file, uint64, and number of its bytes, uint32; in compressed pages the place of
        the page, and the number of the value in it.

    Raises:
        ValueError: If a page is damaged.
        NotImplementedError: If it has its values neither plain nor in a dictionary.
        OSError: If the file cannot be read.
    """
    places = np.zeros(rows, _PLACE)
    dictionary = np.empty(0, _PLACE)
    done = 0
    while done < rows:
        page = _read_header(file, first)
        first = page.start + page.size
        if page.values > rows or (page.kind in DATA_PAGES and page.values > rows - done):
            raise ValueError(f"more than {rows:,} values in as many rows")
        if page.kind == DICTIONARY_PAGE:
            dictionary = _plain_places(file, column, page, page.values)
        elif page.kind in DATA_PAGES:
            present = done + _present(file, column, page, nulls)
            places[present] = _places(file, column, page, dictionary, len(present))
            done += page.values
    return places["offset"], places["size"]


def read_page(file: int, column: PageColumn, place: int) -> tuple[bytes, list[int]]:
    """Read a page of plain values.

    Args:
        file: Descriptor of the open file.
        column: Its column.
        place: First byte of the page.

    Returns:
        Content of the page, decompressed, and the place of each value's length in it, with the end of the last value.

    Raises:
        ValueError: If it is damaged.
        OSError: If the file cannot be read.
    """
    page = _read_header(file, place)
    content = _content(file, column, page)
    ends = [_first_value(content, column, page)]
    try:
        while ends[-1] < len(content):
            ends.append(ends[-1] + _LENGTH.size + _LENGTH.unpack_from(content, ends[-1])[0])
    except struct.error as error:
        raise ValueError("a page is cut off") from error
    return content, ends


def value_of(page: tuple[bytes, list[int]], number: int) -> bytes:
    """A value of a page that :func:`read_page` has read.

    Raises:
        ValueError: If the page has no such value, or not all of it.
    """
    content, ends = page
    if number + 1 >= len(ends) or ends[number + 1] > len(content):
        raise ValueError(f"a page has no value {number}")
    return content[ends[number] + _LENGTH.size : ends[number + 1]]


def _places(file: int, column: PageColumn, page: _Page, dictionary: np.ndarray, count: int) -> np.ndarray:
    """Places of the values of a page of data."""
    if page.encoding == PLAIN_VALUES:
        return _plain_places(file, column, page, count)
    if page.encoding not in (PLAIN_DICTIONARY, RLE_DICTIONARY):
        raise NotImplementedError(f"values have encoding {page.encoding}: write them plain, or with a dictionary")
    if not count:
        return np.empty(0, _PLACE)
    content = _content(file, column, page)
    start = _first_value(content, column, page)
    if start >= len(content):
        raise ValueError("a page is cut off")
    if content[start] > MAX_INDEX_BITS:
        raise ValueError(f"numbers in a dictionary have {content[start]} bits")
    numbers = _numbers(content[start + 1 :], content[start], count)
    if numbers.max() >= len(dictionary):
        raise ValueError("a value is not in the dictionary")
    return dictionary[numbers]


def _plain_places(file: int, column: PageColumn, page: _Page, count: int) -> np.ndarray:
    """Places of plain values, of which the lengths alone are read where they are not compressed."""
    places = np.empty(count, _PLACE)
    if column.codec:
        places["offset"], places["size"] = page.place, np.arange(count)
        return places
    place, end = page.start + page.level_bytes, page.start + page.size
    if page.kind == DATA_PAGE and column.levels:
        place += _LENGTH.size + _length(file, place)
    for number in range(count):
        size = _length(file, place)
        places[number] = place + _LENGTH.size, size
        place += _LENGTH.size + size
        if place > end:
            raise ValueError("a value reaches beyond its page")
    return places


def _length(file: int, place: int) -> int:
    content = os.pread(file, _LENGTH.size, place)
    if len(content) < _LENGTH.size:
        raise ValueError("a page is cut off")
    return int(_LENGTH.unpack(content)[0])


def _present(file: int, column: PageColumn, page: _Page, nulls: bool) -> np.ndarray:
    """Numbers of the rows of a page whose value is not null."""
    if not nulls or not column.levels:
        return np.arange(page.values)
    if page.kind == DATA_PAGE_V2:
        content = os.pread(file, page.level_bytes, page.start)
    else:
        content = _content(file, column, page)[_LENGTH.size :]
    return np.flatnonzero(_numbers(content, column.levels.bit_length(), page.values) == column.levels)


def _content(file: int, column: PageColumn, page: _Page) -> bytes:
    """Content of a page, decompressed, without the levels of the second version."""
    content = os.pread(file, page.size, page.start)
    if len(content) < page.size:
        raise ValueError("a page is cut off")
    content = content[page.level_bytes :]
    if not column.codec or not page.compressed:
        return content
    from pyarrow import decompress

    plain: bytes = decompress(content, page.plain_size - page.level_bytes, codec=column.codec, asbytes=True)
    return plain


def _first_value(content: bytes, column: PageColumn, page: _Page) -> int:
    """Where the values begin in the content of a page."""
    if page.kind != DATA_PAGE or not column.levels:
        return 0
    if len(content) < _LENGTH.size:
        raise ValueError("a page is cut off")
    return _LENGTH.size + int(_LENGTH.unpack_from(content)[0])


def _numbers(content: bytes, bits: int, count: int) -> np.ndarray:
    """Numbers in parquet's hybrid of runs and packed bits."""
    numbers = np.zeros(count, np.int64)
    done = place = 0
    while done < count and bits:
        try:
            head, place = _varint(content, place)
        except IndexError as error:
            raise ValueError("a page is cut off") from error
        if head & 1:  # groups of eight packed numbers
            size = (head >> 1) * bits
            packed = np.frombuffer(content[place : place + size], np.uint8)
            parts = np.unpackbits(packed, bitorder="little")
            part = parts[: len(parts) // bits * bits].reshape(-1, bits) @ (1 << np.arange(bits))
        else:
            size = -(-bits // 8)
            value = content[place : place + size]
            part = np.full(min(head >> 1, count - done) if len(value) == size else 0, int.from_bytes(value, "little"))
        place += size
        if not len(part):
            raise ValueError("a page is cut off")
        part = part[: count - done]
        numbers[done : done + len(part)] = part
        done += len(part)
    return numbers


def _read_header(file: int, place: int) -> _Page:
    """Header of the page that begins at a place."""
    size = HEADER_BYTES
    while True:
        content = os.pread(file, size, place)
        try:
            header, length = _struct(content, 0)
            break
        except IndexError as error:
            if len(content) < size or size > MAX_PAGE_HEADER_BYTES:
                raise ValueError("no header of a page") from error
            size *= 16
        except RecursionError as error:
            raise ValueError("no header of a page") from error
    try:
        kind, plain_size, stored = header[1], header[2], header[3]
        told = header.get({DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}.get(kind, 0), {})
        second = kind == DATA_PAGE_V2
        values, encoding = told.get(1, 0), told.get(4 if second else 2, 0)
        level_bytes = told.get(5, 0) + told.get(6, 0) if second else 0
        page = _Page(place, place + length, stored, plain_size, kind, values, encoding, level_bytes, told.get(7, True))
        sound = 0 <= level_bytes <= min(stored, plain_size) and max(stored, plain_size) <= MAX_NUMBER
        sound &= 0 <= values <= MAX_NUMBER
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no header of a page") from error
    if not sound:
        raise ValueError("no header of a page")
    if page.start + page.size > os.fstat(file).st_size:
        raise ValueError("a page is cut off")
    return page


def _struct(content: bytes, place: int) -> tuple[dict[int, Any], int]:
    """Struct of the compact protocol as values by the number of their field, and the place behind it.

    Raises:
        IndexError: If the content ends before.
        ValueError: If it is no such struct.
    """
    fields: dict[int, Any] = {}
    number = 0
    while head := content[place]:
        place += 1
        if head >> 4:
            number += head >> 4
        else:
            number, place = _signed(content, place)
        kind = head & 15
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (3, 7):  # a byte, a float of 8 bytes
            place += 1 if kind == 3 else 8
        elif kind in (4, 5, 6):
            fields[number], place = _signed(content, place)
        elif kind == 8:  # bytes, of statistics
            size, place = _varint(content, place)
            place += size
        elif kind == 12:
            fields[number], place = _struct(content, place)
        else:
            raise ValueError("no header of a page")
    return fields, place + 1


def _signed(content: bytes, place: int) -> tuple[int, int]:
    """Number whose lowest bit is the sign, and the place behind it."""
    number, place = _varint(content, place)
    return (number >> 1) ^ -(number & 1), place


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Number with seven bits in a byte, and the place behind it.

    Raises:
        IndexError: If the content ends before.
        ValueError: If it has more than 64 bits.
    """
    number = 0
    for shift in range(0, 7 * MAX_VARINT_BYTES, 7):
        byte = content[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise ValueError("no header of a page")
