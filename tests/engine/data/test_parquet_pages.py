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
from engine.data.parquet_pages import CODECS, list_values
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
    from engine.data.parquet_pages import PageColumn

    (tmp_path / "a").write_bytes(content)
    with (tmp_path / "a").open("rb") as file, pytest.raises(ValueError, match="page"):
        list_values(file.fileno(), PageColumn("", 0), 0, 3, False)
