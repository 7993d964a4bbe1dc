"""Shards in S3, as moto imitates it on the loopback; skipped where ``moto[server]`` and ``s3fs`` are not installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backbones import UserError
from classification.data import FolderDataset
from engine.data.image_files import read_image_bytes
from engine.data.stores import access, list_store
from tests.shards import class_folders_of_noise, to_shards

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

CLASSES = ("cat", "dog")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import s3fs

    server = moto.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(access, "FIRST_PAUSE_SECONDS", 0.001)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    if not store.exists("bucket"):  # that of another test
        store.mkdir("bucket")
    yield store
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def listed(root: object, cache: Path | None = None) -> list[tuple[int, bytes]]:
    settings = {"shard_cache": {"folder": str(cache), "size": "1MB"}} if cache else {}
    pipeline = [dict(type="ClassificationTransform", size=16)]
    data = FolderDataset(str(root), "train", dict(classes=CLASSES), pipeline, **settings)
    found = [data.get_data_info(index) for index in range(len(data))]
    return [(one["gt_label"], read_image_bytes(one["img_path"])) for one in found]


def test_shards_in_a_bucket(bucket: Any, tmp_path: Path) -> None:
    folders = class_folders_of_noise(tmp_path / "folders", CLASSES)
    for kind in ("cls", "parquet"):
        to_shards(kind, folders, tmp_path / kind)
        for file in (tmp_path / kind).glob("*train*"):
            bucket.put(str(file), f"bucket/{kind}/{file.name}")
        assert listed(f"s3://bucket/{kind}", tmp_path / "cache") == listed(folders)
    one = next(one for one in list_store("s3://bucket/cls") or [] if one.url.endswith("0000.tar"))
    assert one.version  # from the listing: no question for each shard
    bucket.put(str(tmp_path / "cls" / "set-train-0001.tar"), one.url)
    with pytest.raises(UserError, match=r"two samples with the key"):  # listed again, as it has changed
        listed("s3://bucket/cls", tmp_path / "cache")
    with pytest.raises(UserError, match=r"data_root: 's3://bucket/none' does not exist, or holds no shard"):
        listed("s3://bucket/none", tmp_path / "cache")


def test_without_credentials(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    type(bucket).clear_instance_cache()
    message = r"s3://bucket/x: access is refused, or credentials are missing \(NoCredentialsError.*AWS_ACCESS_KEY_ID"
    with pytest.raises(UserError, match=message) as caught:
        list_store("s3://bucket/x")
    assert "\n" not in str(caught.value)
