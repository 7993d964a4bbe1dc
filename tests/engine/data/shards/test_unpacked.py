"""Files in archives are found where they would be if the archives were unpacked."""

from __future__ import annotations

import copy
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

from backbones.errors import DataError
from engine.data.shards import unpacked
from engine.data.shards.unpacked import find_archive, named_files, read_data_file, stored_path
from tests.shards import write_tar

FILES = {"top.txt": b"0", "a/1.txt": b"one", "a/10.txt": b"ten", "a/deep/2.txt": b"two" * 99, "b/1.txt": b"other"}


def write_zip(path: Path, files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("set/", b"")
        for name, content in files.items():
            with archive.open(f"set/{name}", "w", force_zip64=True) as file:
                file.write(content)
        archive.writestr("set/.hidden/1.txt", b"")
        archive.writestr("__MACOSX/set/._1.txt", b"")
    return path


@pytest.mark.parametrize("kind", ["stored", "deflated", "tar"])
def test_every_file_has_the_path_and_content_that_it_would_have(tmp_path: Path, kind: str) -> None:
    if kind == "tar":
        write_tar(tmp_path / "set.tar", [(f"./set/{name}", content) for name, content in FILES.items()])
    else:
        write_zip(tmp_path / "set.zip", method=zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED)
    root = str(tmp_path / "set")
    found = named_files(root, [])
    assert found == {name: f"{root}/{name}" for name in FILES}
    for name, content in FILES.items():
        assert read_data_file(f"{root}/{name}") == content
        again = pickle.loads(pickle.dumps(copy.deepcopy(found[name])))
        assert (again, again.read()) == (f"{root}/{name}", content)
    assert sorted(named_files(f"{root}/a", [])) == ["1.txt", "10.txt", "deep/2.txt"]
    assert named_files(f"{root}/absent", []) is None
    place = find_archive(f"{root}/a")
    assert place.file("deep/../1.txt").read() == b"one"
    assert place.file("absent.txt") is place.file("deep") is None
    assert stored_path(f"{root}/a/absent.txt") == f"{root}/a/absent.txt"


def test_what_is_unpacked_comes_first(tmp_path: Path) -> None:
    write_zip(tmp_path / "set.zip")
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/a/1.txt").write_bytes(b"unpacked")
    assert read_data_file(tmp_path / "set/a/1.txt") == b"unpacked"
    assert named_files(str(tmp_path / "set"), []) == {"a/1.txt": str(tmp_path / "set/a/1.txt")}


@pytest.mark.parametrize(
    ("archive", "path"),
    [
        ("set.zip", "set.zip/a/1.txt"),
        ("set.zip", "set.zip/set/a/1.txt"),
        ("set_of_2017.zip", "set/a/1.txt"),
        ("other.zip", "other/a/1.txt"),
        ("set.zip", "./set//a/1.txt"),
    ],
    ids=["named", "named with its folder", "longer name", "without a folder of its name", "not normal"],
)
def test_where_an_archive_may_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: str, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    files = {f"../{name}": content for name, content in FILES.items()} if archive == "other.zip" else FILES
    if archive == "other.zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for name, content in files.items():
                opened.writestr(name.removeprefix("../"), content)
    else:
        write_zip(Path(archive))
    assert read_data_file(path) == b"one"


def test_the_archive_of_this_very_name_comes_first(tmp_path: Path) -> None:
    write_zip(tmp_path / "set_old.zip", {"a/1.txt": b"old"})
    write_zip(tmp_path / "set.zip")
    write_zip(tmp_path / "set_more.zip", {"c/1.txt": b"more"})
    assert read_data_file(tmp_path / "set/a/1.txt") == b"one"
    assert read_data_file(tmp_path / "set/c/1.txt") == b"more"


def test_a_path_that_no_archive_has(tmp_path: Path) -> None:
    assert find_archive(tmp_path / "set/a") is None
    (tmp_path / "1.txt").write_bytes(b"no archive")
    assert [find_archive(path) for path in (tmp_path, tmp_path / "1.txt", tmp_path / "1.txt/a")] == [None] * 3
    write_zip(tmp_path / "set.zip")
    with pytest.raises(DataError) as told:
        unpacked.refuse_absent(tmp_path / "set/images")
    assert str(told.value) == f"{tmp_path}/set.zip has no 'set/images': it has set"
    with pytest.raises(FileNotFoundError):
        read_data_file(tmp_path / "set/images")
    found = [unpacked.data_file(tmp_path / name) for name in ("set/a", "set/a/1.txt", "set/images", "1.txt")]
    assert found == [tmp_path / name for name in ("set.zip", "set.zip", "set/images", "1.txt")]
    for tops, told_tops in (("ba", "a, b"), ("edcba", r"a, b, c, d\.\.\.")):
        with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
            for name in tops:
                archive.writestr(f"{name}/1.txt", b"")
        with pytest.raises(DataError, match=rf"many\.zip has no 'f': it has {told_tops}$"):
            unpacked.refuse_absent(tmp_path / "many.zip/f")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive at all", "is damaged or cut off: no whole zip file (File is not a zip file), fetch it again"),
        (b"<!DOCTYPE html><title>404", "is a web page (HTML): the download failed, repeat it"),
    ],
    ids=["text", "web page"],
)
def test_a_bad_archive_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(DataError) as told:
        named_files(str(tmp_path / "set"), [])
    assert str(told.value) == f"{tmp_path}/set.zip: {message}"


@pytest.mark.parametrize("name", ["/etc/passwd", "set/../../up.txt"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    for archive in ("set.zip", "set.tar"):
        path = tmp_path / archive
        if archive.endswith("zip"):
            with zipfile.ZipFile(path, "w") as opened:
                opened.writestr(name, b"")
        else:
            with tarfile.open(path, "w") as opened:
                opened.addfile(tarfile.TarInfo(name), io.BytesIO())
        with pytest.raises(DataError) as told:
            find_archive(tmp_path / "set/a")
        assert str(told.value) == f"{path}: member {name!r} leads out of the archive: make it again"
        path.unlink()


def test_half_an_archive_and_an_empty_one(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"is damaged or cut off: no whole zip file .*, fetch it again$"):
        find_archive(tmp_path / "set/a")
    with zipfile.ZipFile(tmp_path / "set.zip", "w"):
        pass
    with pytest.raises(DataError, match=r"set\.zip: holds no file$"):
        find_archive(tmp_path / "set/a")


def test_an_archive_that_changes_is_not_read_on(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip")
    file = find_archive(tmp_path / "set/a").file("1.txt")
    write_zip(path, {"a/1.txt": b"another"})
    with pytest.raises(DataError, match="has changed since its images were listed: start again"):
        file.read()
