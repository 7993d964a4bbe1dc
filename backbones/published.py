"""Weights under their published names: URLs, names of timm, repositories of Hugging Face.

A file is downloaded once, by one process of a machine, into the cache of torch or of huggingface_hub; from then on no
network is needed. timm, which takes two seconds to import, is imported for a name that may be one of its own.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse
from urllib.request import getproxies

import torch

from backbones.errors import CheckpointError, first_line, nearest
from backbones.files import locked

# Names of the file in a repository or folder of transformers and timm, then in one of OpenCLIP.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_FILES = (*FOLDER_FILES, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_HUB_PREFIX = re.compile(r"hf://|hf-hub:|hf_hub:")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w.-]+)?")
_FILE_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".pkl", ".tar", ".npz", ".h5", ".onnx", ".msgpack"}


def is_url(source: str) -> bool:
    """Whether a source of weights is an address."""
    return re.match(r"(https?|file)://", source) is not None


def is_published(source: str) -> bool:
    """Whether a source of weights is an address or a published name, and not a path; a file that exists is a path."""
    if is_url(source) or _HUB_PREFIX.match(source):
        return True
    path = Path(source)
    if path.exists() or path.is_symlink() or path.suffix in _FILE_SUFFIXES:
        return False
    if "/" not in source:
        import timm

        return timm.is_model(source)  # of a name with a tag it looks at what is before the tag
    return _REPOSITORY.fullmatch(source) is not None and not path.parent.exists()


def nearest_published(source: str) -> str:
    """The end of a message about a path that does not exist: names of timm that it may be meant for."""
    if "." not in source:
        return ""
    import timm

    return nearest(source.removeprefix("timm/"), timm.list_pretrained())


def cached_file(source: str) -> Path | None:
    """The file of published weights, if it was downloaded before.

    Raises:
        CheckpointError: If timm has no weights of that name.
    """
    if is_url(source):
        path = _cache_path(source)
        return path if path.exists() else None
    return _cached(*_repository(source))


def fetch(source: str) -> Path:
    """The file of published weights, downloaded if it is not in the cache.

    Args:
        source: A URL; weights of timm as ``convnext_tiny.fb_in1k`` or ``timm/convnext_tiny.fb_in1k``; a repository of
            Hugging Face as ``facebook/dinov3-convnext-tiny-pretrain-lvd1689m``, with ``@REVISION`` for one that is
            not the newest, and after ``hf://`` with the name of a file in it. ``hf://`` and ``hf-hub:`` may begin any.

    Raises:
        CheckpointError: If there are no such weights, or no network to fetch them; the message has the command.
    """
    if (path := cached_file(source)) is not None:
        return path
    if is_url(source):
        return _download(source)
    return _download_from_hub(source, *_repository(source))


def _cache_path(url: str) -> Path:
    # Files of Hugging Face all have the same name: the URL distinguishes them.
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return Path(torch.hub.get_dir(), "checkpoints", f"{digest}-{PurePosixPath(urlparse(url).path).name}")


def _download(url: str) -> Path:
    path = _cache_path(url)
    with locked(path.with_name(f".{path.name}.lock")):
        if path.exists():  # another process of this machine has waited less
            return path
        try:
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            by_hand = f"; where there is a network: curl -L -O {url}, and give the path of that file as weights"
            fix = "" if url.startswith("file:") else by_hand
            raise CheckpointError(f"checkpoint {url!r} cannot be read: {first_line(error, 160)}{fix}") from error
    return path


def _repository(source: str) -> tuple[str, str | None, Sequence[str]]:
    """Repository, revision (``None`` for the newest), and the names that the file may have.

    Raises:
        CheckpointError: If it is a name of timm and timm has no such weights, or no repository.
    """
    name = _HUB_PREFIX.sub("", source, count=1)
    name, _, revision = name.partition("@")
    owner, _, rest = name.rpartition("/")
    if name == source and owner in ("", "timm"):
        import timm

        if rest not in timm.list_pretrained():
            tags = timm.list_pretrained(f"{rest}.*")
            fix = f": choose one of {', '.join(tags)}" if tags else nearest(rest, timm.list_pretrained())
            other = "" if tags or not owner else f"; hf://{name} takes it from Hugging Face all the same"
            raise CheckpointError(f"checkpoint {source!r}: timm has no weights of that name{fix}{other}")
        settings = timm.get_pretrained_cfg(rest)
        file = getattr(settings, "hf_hub_filename", None)
        return getattr(settings, "hf_hub_id", None) or f"timm/{rest}", None, (file,) if file else _HUB_FILES
    parts = name.split("/")
    if len(parts) < 2 or not all(parts):
        raise CheckpointError(f"checkpoint {source!r}: write hf://OWNER/REPOSITORY, or hf://OWNER/REPOSITORY/FILE")
    return "/".join(parts[:2]), revision or None, ("/".join(parts[2:]),) if parts[2:] else _HUB_FILES


def _cached(repository: str, revision: str | None, files: Sequence[str]) -> Path | None:
    """The first of the files that is in the cache of huggingface_hub."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, file, revision=revision) for file in files)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _download_from_hub(source: str, repository: str, revision: str | None, files: Sequence[str]) -> Path:
    """Download the first of the files that the repository has.

    Raises:
        CheckpointError: If it has none, may not be read, or cannot be reached.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    lock = Path(constants.HF_HUB_CACHE, ".locks", f"{repository.replace('/', '--')}.lock")
    with locked(lock):
        if (path := _cached(repository, revision, files)) is not None:
            return path
        blocked = _why_unreachable(constants.ENDPOINT, constants.HF_HUB_OFFLINE)
        if blocked:
            raise _unreachable(source, repository, revision, files[0], blocked)
        for file in files:
            try:
                return Path(hf_hub_download(repository, file, revision=revision))
            except errors.GatedRepoError as error:
                page = f"{constants.ENDPOINT}/{repository}"
                fix = f"accept its terms on {page}, then log in here with 'hf auth login'"
                raise CheckpointError(f"checkpoint {source!r} is for those who accept its terms: {fix}") from error
            except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
                absent = f"no such file here, nor {'@'.join(filter(None, (repository, revision)))} at Hugging Face"
                fix = "correct the name, or log in with 'hf auth login' if it is private"
                raise CheckpointError(f"checkpoint {source!r}: {absent}: {fix}") from error
            except errors.RemoteEntryNotFoundError:
                continue
            except OSError as error:  # of the network too, and no answer
                reason = first_line(error.__cause__ or error, 100)
                raise _unreachable(source, repository, revision, file, reason) from error
    looked_for = f"has no {' and no '.join(files)}"
    raise CheckpointError(f"checkpoint {source!r}: {repository} {looked_for}; name its file: hf://{repository}/FILE")


def _why_unreachable(endpoint: str, offline: bool) -> str:
    """Why there is no use in asking, which huggingface_hub would do for half a minute; empty if there may be."""
    if offline:
        return "HF_HUB_OFFLINE is set"
    if not getproxies():  # a proxy would resolve the name
        with suppress(OSError):
            socket.getaddrinfo(urlparse(endpoint).hostname, None)
            return ""
        return "its name cannot be resolved"
    return ""


def _unreachable(source: str, repository: str, revision: str | None, file: str, reason: str) -> CheckpointError:
    of = f" --revision {revision}" if revision else ""
    return CheckpointError(
        f"checkpoint {source!r} is no file here, not in the cache, and Hugging Face does not give it ({reason}): where "
        f"there is a network run 'hf download {repository} {file}{of} --local-dir DIR', and give weights=DIR/{file}"
    )
