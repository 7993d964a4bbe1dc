"""Values of parquet files found by their pages: those of pyarrow, whatever way they were written."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest

from backbones import UserError
from engine.data.image_files import read_image_bytes
from engine.data.parquet_pages import CODECS, PageColumn, list_values, value_of
from engine.data.shards import find_shards, open_table
from engine.data.shards.parquet import read_parquet
from engine.data.stored_image import Coding, ShardState, StoredImage

pyarrow = pytest.importorskip("pyarrow")
ROWS = 90


def images(nulls: bool = False, repeated: bool = False) -> list[bytes | None]:
    generator = random.Random(0)
    different: list[bytes | None] = [generator.randbytes(generator.randrange(3000)) for _ in range(ROWS)]
    if repeated:
        different = [different[generator.randrange(5)] for _ in range(ROWS)]
    return [None if nulls and number % 7 in (0, 3) else one for number, one in enumerate(different)]


def write(path: Path, content: list[bytes | None], required: bool = False, **settings: Any) -> Path:
    from pyarrow import parquet

    field = pyarrow.field("bytes", pyarrow.binary(), nullable=not required)
    image = pyarrow.StructArray.from_arrays([pyarrow.array(content, pyarrow.binary())], fields=[field])
    schema = pyarrow.schema(
        [pyarrow.field("image", image.type, nullable=not required), pyarrow.field("label", pyarrow.int64())]
    )
    table = pyarrow.Table.from_arrays([image, pyarrow.array(range(len(content)))], schema=schema)
    defaults = {"row_group_size": 40, "data_page_size": 5000, "write_batch_size": 4}
    parquet.write_table(table, path, **defaults | settings)
    return path


def read(path: Path) -> list[bytes]:
    status = path.stat()
    shard = ShardState(str(path), status.st_size, status.st_mtime_ns)
    headers = read_parquet(str(path))
    rows = zip(headers.offsets.tolist(), headers.sizes.tolist(), headers.codings.tolist(), strict=True)
    return [StoredImage(shard, "x", *row).read() for row in rows]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["NONE", "SNAPPY", "GZIP", "BROTLI", "ZSTD", "LZ4"])
def test_values_are_those_that_were_written(tmp_path: Path, codec: str, version: str) -> None:
    forms = itertools.product((False, True), (False, True), (False, True), (False, True))
    for number, (nulls, repeated, dictionary, statistics) in enumerate(forms):
        content = images(nulls, repeated)
        settings = {"data_page_version": version, "compression": codec, "write_statistics": statistics}
        settings |= {"use_dictionary": dictionary, "dictionary_pagesize_limit": 20_000}
        assert read(write(tmp_path / f"{number}.parquet", content, **settings)) == [one or b"" for one in content]


@pytest.mark.parametrize("codec", ["NONE", "SNAPPY"])
def test_columns_that_have_no_nulls(tmp_path: Path, codec: str) -> None:
    for dictionary in (False, True):
        path = write(tmp_path / "0.parquet", images(), required=True, compression=codec, use_dictionary=dictionary)
        assert read(path) == images()


def test_one_page_at_most_is_read_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes: list[int] = []
    original = os.pread

    def noting(file: int, size: int, place: int) -> bytes:
        content = original(file, size, place)
        read_bytes.append(len(content))
        return content

    for codec, limit in (("NONE", 3000), ("SNAPPY", 20_000)):
        settings = {"row_group_size": 10 * ROWS, "compression": codec, "use_dictionary": False}
        path = write(tmp_path / f"{codec}-train.parquet", images() * 10, **settings)
        shards = find_shards(str(path), ".")
        assert shards is not None
        table = open_table(shards)
        assert path.stat().st_size > 1_000_000
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", noting)
            assert read_image_bytes(table.image(777)) == (images() * 10)[777]
        assert sum(read_bytes) < limit
        read_bytes.clear()


def test_neighbours_are_read_from_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "train.parquet", images(), compression="ZSTD", use_dictionary=False)
    shards = find_shards(str(path), ".")
    assert shards is not None
    table = open_table(shards)
    first = [table.image(row) for row in range(4)]
    assert len({one.offset for one in first}) == 1
    assert first[0].coding == Coding.PAGE
    assert first[0].read() == images()[0]
    monkeypatch.setattr("engine.data.stored_image.read_page", None)
    assert [one.read() for one in first] == images()[:4]


def test_damaged_pages_are_errors_of_reading(tmp_path: Path) -> None:
    """Any byte of the pages is another: values differ, or one error says so, in time."""
    generator, told = random.Random(1), set()
    for codec, version in itertools.product(("NONE", "SNAPPY", "ZSTD"), ("1.0", "2.0")):
        settings = {"compression": codec, "data_page_version": version, "dictionary_pagesize_limit": 9000}
        path = write(tmp_path / f"{codec}{version}.parquet", images(nulls=True), **settings)
        whole = path.read_bytes()
        for _ in range(60):
            place = generator.randrange(4, 30_000)
            path.write_bytes(whole[:place] + generator.randbytes(generator.randrange(1, 40)) + whole[place + 40 :])
            try:
                headers = read_parquet(str(path))
            except UserError as error:
                told.add(str(error).rpartition(": ")[0] or str(error))
                continue
            status = path.stat()
            shard = ShardState(f"{path}", status.st_size, status.st_mtime_ns)
            for row in zip(headers.offsets.tolist(), headers.sizes.tolist(), headers.codings.tolist(), strict=True):
                try:
                    StoredImage(shard, "x", *row).read()
                except OSError as error:
                    told.add(str(error))
    assert len(told) > 5
    assert all("\n" not in one for one in told)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"}},
            r"0\.parquet: values have encoding 7: write them plain, or with a dictionary",
        ),
    ],
)
def test_forms_that_are_not_read(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_parquet(str(write(tmp_path / "0.parquet", images(), **settings)))


def test_every_codec_of_the_list_is_one_of_pyarrow() -> None:
    assert all(pyarrow.Codec.is_available(codec) for codec in CODECS.values() if codec)


@pytest.mark.parametrize(
    "content", [b"", b"\x1c" * 100_000, b"\x15\x00\x19", b"\x15\x04\x15\x00\x15\x00\x00", b"\xff" * 400]
)
def test_what_is_no_header_of_a_page(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with (tmp_path / "a").open("rb") as file, pytest.raises(ValueError, match="page"):
        list_values(file.fileno(), PageColumn("", 0), 0, 3, False)


def header(kind: int, size: int, values: int, encoding: int) -> bytes:
    """Header of a page in the compact protocol, of numbers below 64."""
    field = {0: 0x2C, 2: 0x4C}[kind]  # a struct, so many fields after the third
    numbers = [0x15, 2 * kind, 0x15, 2 * size, 0x15, 2 * size, field, 0x15, 2 * values, 0x15, 2 * encoding, 0, 0]
    return bytes(numbers)


def number_bytes(number: int) -> bytes:
    """A whole number of any size in the compact protocol."""
    rest, found = 2 * number if number >= 0 else -2 * number - 1, bytearray()
    while rest > 0x7F:
        found.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*found, rest])


def any_header(numbers: list[int], second: list[int]) -> bytes:
    """Header of a page: kind and two sizes, and then, of a page of the second version, its own numbers."""
    first = b"".join(b"\x15" + number_bytes(one) for one in numbers)
    return first + b"\x5c" + b"".join(b"\x15" + number_bytes(one) for one in second) + b"\0\0"


@pytest.mark.parametrize(
    "content",
    [
        any_header([3, 9, 2**70], [1, 0, 1, 0, 0]),
        any_header([3, 9, 2**40], [1, 0, 1, 0, 0]),
        any_header([3, 9, 2**31 - 1], [1, 0, 1, 0, 0]),
        any_header([3, -9, 9], [1, 0, 1, 0, 0]),
        any_header([3, 2**40, 9], [1, 0, 1, 0, 0]),
        any_header([3, 2, 9], [1, 0, 1, 0, 5]),  # more levels than there is content
        any_header([3, 9, 9], [1, 0, 1, 0, -1]),
        b"\x15\x06\x1c\x00\x15\x12" + b"\x5c\x15\x02\x00\x00",  # a size that is a struct
        b"\x15" + b"\xff" * 2**20,  # a number without end
    ],
)
@pytest.mark.parametrize("codec", ["", "zstd"])
def test_sizes_that_no_page_has(tmp_path: Path, content: bytes, codec: str) -> None:
    (tmp_path / "a").write_bytes(content + b"\5\0\0\0xxxxx")
    with (tmp_path / "a").open("rb") as file:
        for nulls in (False, True):
            with pytest.raises(ValueError, match=r"no header of a page|a page is cut off"):
                list_values(file.fileno(), PageColumn(codec, 1), 0, 3, nulls)


def listed(folder: Path, content: bytes, rows: int = 1) -> list[int]:
    (folder / "pages").write_bytes(content)
    with (folder / "pages").open("rb") as file:
        offsets, _ = list_values(file.fileno(), PageColumn("", 0), 0, rows, False)
    return offsets.tolist()


def test_numbers_of_a_dictionary(tmp_path: Path) -> None:
    dictionary = header(2, 5, 1, 0) + b"\1\0\0\0x"
    place = len(dictionary) - 1
    for number, expected in ((0, [place]), (1, None)):
        content = dictionary + header(0, 3, 1, 8) + bytes([1, 2, number])  # one bit, a run of one
        if expected is not None:
            assert listed(tmp_path, content) == expected
            continue
        with pytest.raises(ValueError, match="a value is not in the dictionary"):
            listed(tmp_path, content)
    for numbers, words in (
        (b"", "a page is cut off"),
        (bytes([9, 2, 0]), "a page is cut off"),  # half of the number of a run
        (bytes([200, 2, *[255] * 25]), "numbers in a dictionary have 200 bits"),
    ):
        with pytest.raises(ValueError, match=words):
            listed(tmp_path, dictionary + header(0, len(numbers), 1, 8) + numbers)


def test_values_that_reach_beyond_their_page(tmp_path: Path) -> None:
    inside = header(0, 5, 1, 0) + b"\1\0\0\0x"
    assert listed(tmp_path, inside) == [len(inside) - 1]
    with pytest.raises(ValueError, match="a value reaches beyond its page"):
        listed(tmp_path, header(0, 5, 1, 0) + b"\2\0\0\0xy")
    with pytest.raises(ValueError, match="more than 1 values in as many rows"):
        listed(tmp_path, header(0, 10, 2, 0) + b"\1\0\0\0x" * 2)
    with pytest.raises(ValueError, match="more than 3 values in as many rows"):
        listed(tmp_path, (header(0, 10, 2, 0) + b"\1\0\0\0x" * 2) * 2, 3)
    page = (b"\1\0\0\0x\2\0\0\0y", [0, 5, 11])
    assert value_of(page, 0) == b"x"
    for number in (1, 2):
        with pytest.raises(ValueError, match=f"a page has no value {number}"):
            value_of(page, number)


def test_a_file_without_row_groups(tmp_path: Path) -> None:
    from pyarrow import parquet

    schema = parquet.read_schema(write(tmp_path / "0.parquet", images()))
    parquet.ParquetWriter(tmp_path / "1.parquet", schema).close()
    assert read(tmp_path / "1.parquet") == []


@pytest.mark.parametrize("images_as", ["binary", "large_binary", "binary_view"])
def test_types_of_bytes_and_labels(tmp_path: Path, images_as: str) -> None:
    from pyarrow import parquet

    content = [b"one", b"", b"three", None]
    kind = pyarrow.struct([("path", pyarrow.large_string()), ("bytes", getattr(pyarrow, images_as)())])
    column = pyarrow.array([{"path": None, "bytes": one} for one in content], kind)
    for labels, expected in (
        (pyarrow.array([3, 1, 1, 0], pyarrow.uint8()), [3, 1, 1, 0]),
        (pyarrow.array([3, 1, 1, 0], pyarrow.uint64()).dictionary_encode(), [3, 1, 1, 0]),
        (pyarrow.array(["d", "b", "b", "a"], pyarrow.large_string()), [b"d", b"b", b"b", b"a"]),
        (pyarrow.array(["d", "b", "b", "a"], pyarrow.string_view()), [b"d", b"b", b"b", b"a"]),
        (pyarrow.array(["d", "b", "b", "a"]).dictionary_encode(), [b"d", b"b", b"b", b"a"]),
    ):
        parquet.write_table(pyarrow.table({"label": labels, "image": column}), tmp_path / "0.parquet")
        assert read_parquet(str(tmp_path / "0.parquet")).labels.tolist() == expected
        assert read(tmp_path / "0.parquet") == [one or b"" for one in content]


def test_columns_that_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    for content, kind in (([{"bytes": 1}], "number"), ([{"bytes": [b"x"]}], "list")):
        parquet.write_table(pyarrow.table({"image": content, "label": [0]}), tmp_path / kind)
        with pytest.raises(UserError, match=rf"{kind}: column image\.bytes has no bytes"):
            read_parquet(str(tmp_path / kind))
    path = write(tmp_path / "0.parquet", images(), compression="ZSTD")
    monkeypatch.delitem(CODECS, "ZSTD")
    with pytest.raises(UserError, match=r"column image\.bytes is compressed by ZSTD: write it again"):
        read_parquet(str(path))
