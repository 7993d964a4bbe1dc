"""Headers of tar and zip files: WebDataset samples, or class folders inside of an archive."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from backbones.errors import DataError, first_line, printable
from backbones.file_kinds import SIGNATURE_BYTES, describe_content
from backbones.files import open_file
from engine.data.image_files import IMAGE_SUFFIXES
from engine.data.paths import is_hidden
from engine.data.shards.find import SPLIT_WORDS_OF_SHARDS, WHOLE
from engine.data.shards.headers import HeaderList, ShardHeaders, parents, parse_label, refuse_outside
from engine.data.stored_image import Coding

LABEL_SUFFIXES = ("cls", "json")  # of WebDataset; the first that a sample has counts
SAMPLE_IMAGES = ("jpg", "jpeg", "png", "webp")
TAR_BLOCK = 512
READ_BYTES = 2**20  # at once
ALL_FILES = "*"  # split of a table that lists every file by its folder, as of an archive that is not unpacked
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member of a zip file: signature, length of its name and of the rest
_ENCRYPTED = 1  # flag of a member of a zip file
_CODINGS = {zipfile.ZIP_STORED: Coding.STORED, zipfile.ZIP_DEFLATED: Coding.DEFLATED}


class Member(NamedTuple):
    """A file inside of an archive.

    Attributes:
        name: Path in the archive.
        offset: First byte.
        size: Bytes in the archive.
        coding: Form of the bytes.
    """

    name: str
    offset: int
    size: int
    coding: Coding = Coding.STORED


def read_tar(path: str, split: str, copy: str | None = None) -> ShardHeaders:
    """Headers of a tar file: WebDataset's samples, class folders, or the images of one class, which gives its name.

    Args:
        path: The file.
        split: Folder inside of it, where it has folders of several splits; or ``ALL_FILES``.
        copy: File to read in its place, of a shard of a store.

    Raises:
        DataError: If it is damaged, compressed, or does not tell the label of an image.
        OSError: If it cannot be read.
    """
    with open_file(copy or path) as file:
        members = _tar_members(path, file)
        labelled = any(_suffix(member.name) in LABEL_SUFFIXES for member in members)
        if split == ALL_FILES:
            return _all_files(path, members)
        return _samples(path, file, members) if labelled else _class_folders(path, members, split)


def _tar_members(path: str, file: BinaryIO) -> list[Member]:
    size = os.fstat(file.fileno()).st_size
    members = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                refuse_outside(info.name, path)
                if info.issparse():
                    raise DataError(f"{printable(path)}: member {info.name!r} is a sparse file: pack it without -S")
                if info.isreg():
                    members.append(Member(info.name, info.offset_data, info.size))
                elif not info.isdir():
                    raise DataError(f"{printable(path)}: member {info.name!r} is no file: store files, not links")
                archive.members.clear()  # type: ignore[attr-defined]  # would be kept
            end = archive.offset
    except (tarfile.TarError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        found = describe_content(os.pread(file.fileno(), SIGNATURE_BYTES, 0))
        if found and "tar archive" not in found:
            raise DataError(f"{printable(path)}: {found}") from error
        raise DataError(f"{printable(path)}: {_cut_off(size)} ({first_line(error)})") from error
    # The library takes anything that is no header for the end, also that of a file cut off between two members.
    if os.pread(file.fileno(), TAR_BLOCK, end) != bytes(TAR_BLOCK):
        raise DataError(f"{printable(path)}: {_cut_off(size)}")
    for place in range(end, size, READ_BYTES):
        if os.pread(file.fileno(), READ_BYTES, place).strip(b"\0"):
            raise DataError(f"{printable(path)}: has more behind its end, as tars put together by cat: use tar -A")
    return members


def _cut_off(size: int) -> str:
    return f"is damaged or cut off: no whole tar in its {size:,} bytes, fetch or make it again"


def _suffix(member: str) -> str:
    return os.path.basename(member).partition(".")[2].lower()


def _samples(path: str, file: BinaryIO, members: Sequence[Member]) -> ShardHeaders:
    """WebDataset: members of one sample have the same path up to the first dot of the name."""
    samples: dict[str, dict[str, Member]] = {}
    for member in members:
        folder, name = os.path.split(member.name.removeprefix("./"))
        key, suffix = os.path.join(folder, name.partition(".")[0]), _suffix(member.name)
        if is_hidden(name) or suffix not in (*SAMPLE_IMAGES, *LABEL_SUFFIXES):
            continue
        parts = samples.setdefault(key, {})
        if suffix in parts or (suffix in SAMPLE_IMAGES and any(other in SAMPLE_IMAGES for other in parts)):
            raise DataError(f"{printable(path)}: two samples with the key {key!r}: give each a key of its own")
        parts[suffix] = member
    found = HeaderList(path)
    for key, parts in samples.items():
        image = next((parts[suffix] for suffix in SAMPLE_IMAGES if suffix in parts), None)
        label = next((suffix for suffix in LABEL_SUFFIXES if suffix in parts), None)
        if image is None:
            continue  # of the data set as a whole, such as a list of the classes
        if label is None:
            raise DataError(f"{printable(path)}: sample {key!r} has no label: neither cls nor json beside its image")
        content = os.pread(file.fileno(), parts[label].size, parts[label].offset)
        number = parse_label(content, label, parts[label].name, path)
        found.add(image.name.removeprefix("./"), number, image.offset, image.size, image.coding)
    return found.finish("everywhere")


def _class_folders(path: str, members: Iterable[Member], split: str) -> ShardHeaders:
    """Images in folders that name their class, below one of the split where there are such."""
    images = [
        member
        for member in members
        if member.name.lower().endswith(IMAGE_SUFFIXES)
        and not any(map(is_hidden, [*parents(member.name), os.path.basename(member.name)]))
    ]
    outer = _split_folder([parents(member.name) for member in images], split, path)
    found = HeaderList(path)
    for member in images:
        folders = parents(member.name)
        if folders[: len(outer)] != outer:
            continue
        inside = folders[len(outer) :]
        name = "/".join([*inside[1:], os.path.basename(member.name)])
        # A tar of one class, as ImageNet's are, holds no folder.
        label = inside[0] if inside else Path(path).name.partition(".")[0]
        if not inside and (outer or split_words(path)):
            raise DataError(
                f"{printable(path)}: image {member.name!r} has no label: no cls or json beside it, no class folder"
            )
        found.add(name, label, member.offset, member.size, member.coding)
    return found.finish()


def _all_files(path: str, members: Iterable[Member]) -> ShardHeaders:
    """All files that are not hidden, with the folder as label and the path in the archive as name."""
    found = HeaderList(path)
    for member in members:
        folders, name = parents(member.name), os.path.basename(member.name)
        if not any(map(is_hidden, [*folders, name])):
            found.add("/".join([*folders, name]), "/".join(folders), member.offset, member.size, member.coding)
    headers = found.finish()
    if not len(headers.names):
        raise DataError(f"{printable(path)}: holds no file")
    return headers


def split_words(path: str) -> bool:
    """Whether a file is named for a split, so that its name is none of a class."""
    name = os.path.basename(path).lower()
    return any(word in name for words in SPLIT_WORDS_OF_SHARDS.values() for word in words)


def _split_folder(folders: Sequence[Sequence[str]], split: str, path: str) -> list[str]:
    """Folders around those of the classes: what all share, and that of the split."""
    outer = ["/".join(one[:-1]) for one in folders]
    common = [part for part in os.path.commonpath(outer).split("/") if part] if outer else []
    if split not in WHOLE and common[-1:] == [split]:
        return common
    tops = {one[len(common)] for one in folders if len(one) > len(common) + 1}
    if split not in WHOLE and split in tops:
        return [*common, split]
    words = {word for words in SPLIT_WORDS_OF_SHARDS.values() for word in words}
    splits = sorted(words.intersection(tops))
    if common and common[-1] in words.difference(SPLIT_WORDS_OF_SHARDS.get(split, ())):
        splits, tops = common[-1:], set(common[-1:])  # one folder, of another split
    if split not in WHOLE and splits and splits == sorted(tops):
        raise DataError(f"{printable(path)}: has the folders {', '.join(splits)}, none for the split {split!r}")
    return common


def read_zip(path: str, split: str, copy: str | None = None) -> ShardHeaders:
    """Headers of a zip file with class folders inside.

    Args:
        path: The file.
        split: Folder inside of it, where it has folders of several splits; or ``ALL_FILES``.
        copy: File to read in its place, of a shard of a store.

    Raises:
        DataError: If it is damaged, or a member is encrypted or compressed by another method than deflate.
        OSError: If it cannot be read.
    """
    with open_file(copy or path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [_zip_member(path, file, info) for info in archive.infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            known = describe_content(os.pread(file.fileno(), SIGNATURE_BYTES, 0))
            reason = known or f"is damaged or cut off: no whole zip file ({first_line(error)}), fetch it again"
            raise DataError(f"{printable(path)}: {reason}") from error
    return _all_files(path, members) if split == ALL_FILES else _class_folders(path, members, split)


def _zip_member(path: str, file: BinaryIO, info: zipfile.ZipInfo) -> Member:
    refuse_outside(info.filename, path)
    if info.flag_bits & _ENCRYPTED or info.compress_type not in _CODINGS:
        problem = "is encrypted" if info.flag_bits & _ENCRYPTED else f"has compression method {info.compress_type}"
        raise DataError(f"{printable(path)}: member {info.filename!r} {problem}: pack it anew, stored or deflated")
    header = os.pread(file.fileno(), _LOCAL_HEADER.size, info.header_offset)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile(f"no header of {info.filename!r}")
    _, name, extra = _LOCAL_HEADER.unpack(header)
    offset = info.header_offset + _LOCAL_HEADER.size + name + extra
    return Member(info.filename, offset, info.compress_size, _CODINGS[info.compress_type])
