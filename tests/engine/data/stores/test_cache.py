"""Shards of a store on disk: whole or absent, bounded, shared, and one line for each fault of the store."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from fsspec import AbstractFileSystem

from backbones import UserError
from engine.data.stored_image import ShardState, StoredImage
from engine.data.stores import ReadAhead, ShardCache, list_store, stored_states
from engine.data.stores import access as access_module
from engine.data.stores import cache as cache_module
from engine.data.stores.access import STORE_ATTEMPTS, is_store_url
from tests.programs import PATIENCE
from tests.store_server import Store, serve

SIZE = 5000
NAMES = ("a.tar", "b.tar", "c.tar", "d.tar")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(cache_module, "RANGE_BYTES", 2000)  # three ranges of each file


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "store").mkdir()
    for name in NAMES:
        (tmp_path / "store" / name).write_bytes(content_of(name))
    with serve(tmp_path / "store") as served:
        yield served


def content_of(name: str) -> bytes:
    return (name.encode() * SIZE)[:SIZE]


def cache_of(tmp_path: Path, shards: float = 2.5) -> ShardCache:
    return ShardCache(str(tmp_path / "cache"), int(shards * SIZE))


def shard_of(store: Store, name: str, cache: ShardCache | None) -> ShardState:
    (one,) = stored_states([f"{store.url}/{name}"])
    return ShardState(one.url, one.size, one.version, cache)


def kept(cache: ShardCache) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in Path(cache.folder, "objects").iterdir())


def read(cache: ShardCache, shard: ShardState) -> bytes:
    with cache.open(shard) as file:
        return file.read()


@pytest.mark.parametrize("fault", ["503", "cut", "slow"])
def test_what_fails_now_and_then_is_asked_for_again(store: Store, tmp_path: Path, fault: str) -> None:
    cache = cache_of(tmp_path)
    shard = shard_of(store, "a.tar", cache)
    store.faults = ["", fault, fault, "", fault]
    assert read(cache, shard) == content_of("a.tar")
    assert len(store.gets) == (3 if fault == "slow" else 6)
    assert read(cache, shard) == content_of("a.tar")  # by now from the disk
    assert len(store.gets) == (3 if fault == "slow" else 6)


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_what_always_fails_is_one_line_and_leaves_nothing(store: Store, tmp_path: Path, fault: str) -> None:
    cache = cache_of(tmp_path)
    shard = shard_of(store, "a.tar", cache)
    store.faults = ["", *[fault] * STORE_ATTEMPTS]
    image = StoredImage(shard, "x.jpg", 10, 20, 0)
    with pytest.raises(
        UserError, match=r"a\.tar: cannot be read after 6 attempts \(Client.*: check the network"
    ) as caught:
        image.read()
    assert "\n" not in str(caught.value)
    assert kept(cache) == []
    assert image.read() == content_of("a.tar")[10:30]  # the store is well again


def test_a_silent_store_is_not_waited_for(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(tmp_path)
    shard = shard_of(store, "a.tar", cache)
    monkeypatch.setattr(access_module, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(access_module, "STORE_ATTEMPTS", 2)
    store.faults = ["silent"] * 9
    with pytest.raises(UserError, match=r"a\.tar: cannot be read after 2 attempts \(\w*Timeout"):
        cache.open(shard)


def test_a_store_that_is_away(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/a\.tar: cannot be read after 6 attempts"):
        stored_states(["http://127.0.0.1:9/a.tar"])


def test_a_changed_object_is_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(tmp_path)
    shard = shard_of(store, "a.tar", cache)
    changed = r"a\.tar: has changed since its images were listed: start again"
    ask = cache_module.read_range

    def change(url: str, start: int, end: int) -> bytes:
        content = ask(url, start, end)
        if start:
            (store.root / "a.tar").write_bytes(content_of("b.tar"))  # of the same size
        return content

    monkeypatch.setattr(cache_module, "read_range", change)
    with pytest.raises(UserError, match=changed):
        cache.open(shard)
    assert kept(cache) == []
    with pytest.raises(UserError, match=changed):  # before it is fetched
        cache.open(shard)
    (store.root / "a.tar").unlink()
    with pytest.raises(UserError, match=r"a\.tar: does not exist, or may not be seen"):
        cache.open(shard)


def test_a_server_without_ranges(store: Store, tmp_path: Path) -> None:
    store.ranges = False
    cache = cache_of(tmp_path)
    assert read(cache, shard_of(store, "a.tar", cache)) == content_of("a.tar")
    assert len(store.gets) == 1


def test_a_server_that_answers_by_range_at_first(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, whole = cache_of(tmp_path), content_of("a.tar")
    monkeypatch.setattr(cache_module, "read_range", lambda url, start, end: whole if start else whole[start:end])
    assert read(cache, shard_of(store, "a.tar", cache)) == whole


@pytest.mark.parametrize("status", ["401", "403"])
def test_refused_access_is_not_tried_again(store: Store, tmp_path: Path, status: str) -> None:
    cache = cache_of(tmp_path)
    shard = shard_of(store, "a.tar", cache)
    store.faults = [status]
    with pytest.raises(UserError, match=r"a\.tar: access is refused, or credentials are missing \(ClientResponseError"):
        cache.open(shard)
    assert len(store.gets) == 1


def test_the_shard_that_was_opened_longest_ago_goes(store: Store, tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    shards = {name: shard_of(store, name, cache) for name in NAMES}
    for name in ("a.tar", "b.tar", "a.tar", "c.tar"):
        still_open = cache.open(shards[name])
        time.sleep(0.02)  # times of files have the resolution of the clock's tick
    assert kept(cache) == ["a.tar", "c.tar"]
    read(cache, shards["d.tar"])
    assert kept(cache) == ["c.tar", "d.tar"]
    read(cache, shards["a.tar"])
    read(cache, shards["b.tar"])
    assert still_open.read() == content_of("c.tar")  # what is open stays readable
    with pytest.raises(UserError, match=r"a\.tar: has 5,000 bytes, the cache 4,000: set a larger shard_cache\.size"):
        cache_of(tmp_path / "other", 0.8).open(shards["a.tar"])


def test_an_image_reader_closes_what_has_gone(store: Store, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1.5)
    images = [StoredImage(shard_of(store, name, cache), "x.jpg", 10, 20, 0) for name in NAMES]
    for _ in range(2):
        assert [one.read() for one in images] == [content_of(name)[10:30] for name in NAMES]
    links = [Path("/proc/self/fd", one) for one in os.listdir("/proc/self/fd")]
    held = [os.readlink(one) for one in links if one.is_symlink()]
    assert sum(cache.folder in one and "deleted" in one for one in held) <= 1


def test_a_full_disk(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(tmp_path, 9)
    shards = {name: shard_of(store, name, cache) for name in NAMES}
    take, room = os.posix_fallocate, 2

    def fallocate(descriptor: int, start: int, size: int) -> None:
        if len(kept(cache)) > room:  # this one is among them
            raise OSError(errno.ENOSPC, "No space left on device")
        take(descriptor, start, size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    for name in NAMES:
        assert read(cache, shards[name]) == content_of(name)
    assert len(kept(cache)) == 2  # the others made room
    room = 0
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): make room, or set a smaller"):
        cache.open(shards["a.tar"])
    assert kept(cache) == []


def test_two_processes_want_the_same_shard(store: Store, tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    shard = shard_of(store, "a.tar", cache)
    store.faults = ["slow"]
    context = get_context("fork")
    processes = [context.Process(target=_expect, args=(cache, shard)) for _ in range(3)]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
    assert [one.exitcode for one in processes] == [0, 0, 0]
    assert len(store.gets) == 3  # ranges, each once


def _expect(cache: ShardCache, shard: ShardState) -> None:
    os._exit(read(cache, shard) != content_of("a.tar"))


def test_a_killed_process_leaves_nothing_that_is_used(store: Store, tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    shards = {name: shard_of(store, name, cache) for name in NAMES}
    store.faults = ["", "", *["silent"] * 99]
    child = get_context("fork").Process(target=read, args=(cache, shards["a.tar"]))
    child.start()
    while len(store.gets) < 3:  # two of its three ranges are there
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert kept(cache) == ["a.tar.part"]
    store.faults = []
    read(cache, shards["b.tar"])
    assert kept(cache) == ["b.tar"]
    assert read(cache, shards["a.tar"]) == content_of("a.tar")


def test_a_damaged_file_of_the_cache_is_fetched_again(store: Store, tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    shard = shard_of(store, "a.tar", cache)
    read(cache, shard)
    (file,) = Path(cache.folder, "objects").iterdir()
    file.write_bytes(b"half")
    assert read(cache, shard) == content_of("a.tar")


def test_a_shard_is_on_the_disk_before_it_has_its_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(tmp_path)
    kept_when_synced: list[list[str]] = []
    monkeypatch.setattr(cache_module.os, "fsync", lambda file: kept_when_synced.append(kept(cache)))
    read(cache, shard_of(store, "a.tar", cache))
    assert len(kept_when_synced) == 1
    assert kept_when_synced[0][0].endswith(".part")
    assert kept(cache) == ["a.tar"]


def test_what_another_process_has_removed_takes_no_room(tmp_path: Path) -> None:
    assert cache_module._remove(tmp_path / "absent") == 0
    (tmp_path / "there").write_bytes(b"five!")
    assert cache_module._remove(tmp_path / "there") == 5
    with pytest.raises(IsADirectoryError):
        cache_module._remove(tmp_path)


def test_an_object_without_a_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket("gs", {"size": None})
    monkeypatch.setattr(access_module, "_store_of", lambda url: (bucket, "bucket/a.tar"))
    with pytest.raises(UserError, match=r"^gs://bucket/a\.tar: the server does not tell its size: fetch it"):
        stored_states(["gs://bucket/a.tar"])


def test_reading_ahead(store: Store, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 4)
    shards = [shard_of(store, name, cache) for name in NAMES]
    ahead = ReadAhead(cache)
    ahead.want(shards[:1])
    ahead.want(shards[1:])
    until = time.monotonic() + PATIENCE
    while not all(map(cache.holds, shards[1:])) and time.monotonic() < until:
        time.sleep(0.02)
    assert all(map(cache.holds, shards[1:]))


def test_listing(store: Store) -> None:
    (store.root / "train").mkdir()
    (store.root / "train" / "x.tar").write_bytes(b"x")
    found = list_store(store.url)
    assert found is not None
    assert sorted((one.url.removeprefix(store.url), one.folder) for one in found)[:2] == [
        ("/a.tar", False),
        ("/b.tar", False),
    ]
    assert [one.url for one in list_store(f"{store.url}/train") or []] == [f"{store.url}/train/x.tar"]
    assert list_store(f"{store.url}/none") is None


def test_stores_of_fsspec(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/train/a.tar", content_of("a.tar"))
    (tmp_path / "a.tar").write_bytes(content_of("a.tar"))
    for url in ("memory://bucket/train/a.tar", f"file://{tmp_path}/a.tar"):
        cache = ShardCache(str(tmp_path / "cache"), SIZE)
        (one,) = stored_states([url])
        assert (one.size, one.folder, one.version > 0) == (SIZE, False, True)
        assert read(cache, ShardState(url, one.size, one.version, cache)) == content_of("a.tar")
    assert [one.folder for one in list_store("memory://bucket") or []] == [True]


class Bucket(AbstractFileSystem):
    """A store whose entries have the properties that those of Google or Hugging Face have.

    Args:
        protocol: Protocol of its URLs.
        properties: Properties of each entry, beside name, type and size.
        refuses: Error of each question.
    """

    cachable = False

    def __init__(self, protocol: str, properties: dict[str, Any], refuses: Exception | None = None) -> None:
        super().__init__()
        self.protocol, self.properties, self.refuses = protocol, properties, refuses

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if self.refuses is not None:
            raise self.refuses
        return {"name": path, "type": "file", "size": SIZE, **self.properties}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        return [self.info(f"{path}/{name}") for name in NAMES]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return content_of(path.rpartition("/")[2])[start:end]


URLS = {"gs": "gs://bucket/train", "hf": "hf://datasets/owner/name/train"}


def serve_by(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "is_absent", lambda package: False)  # gcsfs is not installed everywhere
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **_: (bucket, url.partition("://")[2]))


@pytest.mark.parametrize(
    ("protocol", "properties", "others"),
    [
        ("gs", {"etag": "CJ=", "generation": "1"}, {"etag": "CK=", "generation": "2"}),
        ("hf", {"blob_id": "a", "lfs": {"sha256": "1"}}, {"blob_id": "a", "lfs": {"sha256": "2"}}),
    ],
)
def test_shards_of_google_and_hugging_face(
    protocol: str, properties: dict[str, Any], others: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, cache = Bucket(protocol, properties), cache_of(tmp_path)
    serve_by(bucket, monkeypatch)
    listed = list_store(URLS[protocol])
    assert listed is not None
    assert [one.url for one in listed] == [f"{URLS[protocol]}/{name}" for name in NAMES]
    shards = [ShardState(one.url, one.size, one.version, cache) for one in stored_states([one.url for one in listed])]
    assert read(cache, shards[1]) == content_of("b.tar")
    bucket.properties = others
    with pytest.raises(UserError, match=r"train/c\.tar: has changed since its images were listed: start again"):
        read(cache, shards[2])
    assert kept(cache) == ["b.tar"]


@pytest.mark.parametrize(
    ("protocol", "kind", "fix"),
    [
        ("gs", "DefaultCredentialsError", "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDE"),
        ("hf", "GatedRepoError", "run hf auth login, or set HF_TOKEN, and accept the conditions"),
    ],
)
def test_missing_credentials(protocol: str, kind: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_by(Bucket(protocol, {}, type(kind, (Exception,), {})("none were found")), monkeypatch)
    with pytest.raises(UserError) as caught:
        stored_states([f"{URLS[protocol]}/a.tar"])
    reason = f"access is refused, or credentials are missing ({kind}: none were found): {fix}"
    assert str(caught.value).startswith(f"{URLS[protocol]}/a.tar: {reason}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url, absent, message",
    [
        ("s3://b/a.tar", "s3fs", r"s3://b/a\.tar: package 's3fs' is missing: pip install s3fs, or"),
        ("gs://b/a.tar", "gcsfs", r"gs://b/a\.tar: package 'gcsfs' is missing: pip install gcsfs, or"),
        (
            "hf://datasets/a/b.tar",
            "huggingface_hub",
            r"package 'huggingface_hub' is missing: pip install huggingface_hub",
        ),
        (
            "https://h/a.tar",
            "aiohttp",
            r"https://h/a\.tar: package 'aiohttp' is missing: pip install -e '\.\[stores\]'",
        ),
        ("https://h/a.tar", "fsspec", r"https://h/a\.tar: package 'fsspec' is missing: pip install -e '\.\[stores\]'"),
        ("nosuch://h/a.tar", "", r"nosuch://h/a\.tar: no store is known by nosuch://: s3://, gs://, hf://, https://"),
    ],
)
def test_missing_packages(url: str, absent: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "is_absent", lambda package: package == absent)
    monkeypatch.setattr("backbones.packages.is_absent", lambda package: package == absent)
    with pytest.raises(UserError, match=message):
        stored_states([url])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sizes": 1}, r"shard_cache has no setting 'sizes': choose from size, such as '500GB', and folder"),
        ({"size": "much"}, r"shard_cache\.size 'much': a number with a unit is needed"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShardCache.of(settings)
    assert ShardCache.of({"size": "2TB", "folder": "/x"}) == ShardCache("/x", 2 * 10**12)


def test_urls() -> None:
    assert [is_store_url(one) for one in ("s3://b/x", "https://h", "/a/b", "a", "C:\\x", None)] == [True] * 2 + [
        False
    ] * 4
