"""Objects of a store by their URL, through fsspec: what lies in a folder, how large it is, and a range of its bytes.

Stores fail now and then: a question is asked again, with growing pauses, before one line says that it failed.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from backbones.errors import DataError, MachineError, UserError, first_line, printable
from backbones.packages import is_absent, missing_package_error

STORE_ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.5  # before the second attempt; each further pause is twice as long
# Without a byte. A worker of a data loader that waits for longer than 45 s in all counts as hung.
SILENCE_SECONDS = 15
PARALLEL_QUESTIONS = 16  # about single objects, of stores that cannot list many with size and tag
STORE_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    "hf": "huggingface_hub",
}
ACCESS_FIXES = {
    **dict.fromkeys(("s3", "s3a"), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run aws configure"),
    **dict.fromkeys(("gs", "gcs"), "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS"),
    "hf": "run hf auth login, or set HF_TOKEN, and accept the conditions of the data set on its page",
}
# What tells one version of an object from another, the best first: names of the stores' properties.
VERSION_KEYS = ("ETag", "etag", "md5Hash", "Content-MD5", "blob_id", "generation", "Last-Modified", "LastModified")
TIME_KEYS = ("last_modified", "mtime", "created")
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
Answer = TypeVar("Answer")


class Stored(NamedTuple):
    """An object or folder of a store.

    Attributes:
        url: Its URL.
        folder: Presence of a folder, not an object.
        size: Bytes; -1 if the store does not tell.
        version: Number made of its tag, or of its time; 0 if the store tells neither.
    """

    url: str
    folder: bool
    size: int
    version: int


def is_store_url(path: object) -> bool:
    """Whether a path is the URL of an object or folder in a store."""
    return isinstance(path, str) and _URL.match(path) is not None


def list_store(url: str) -> list[Stored] | None:
    """What lies directly in a folder of a store; ``None`` if there is no such folder.

    Raises:
        UserError: If the store cannot be reached, refuses access, or needs a package.
    """

    def listing() -> list[Stored]:
        store, path = _store_of(url)
        store.invalidate_cache()
        # Web servers tell links that lead up or to the same page by their length alone.
        entries = store.ls(path, detail=True)
        found = [_stored(store.unstrip_protocol(entry["name"]), entry) for entry in entries]
        return [one for one in found if one.url.rstrip("/") != url.rstrip("/")]

    try:
        return attempt(url, listing)
    except (FileNotFoundError, NotADirectoryError):
        return None


def stored_states(urls: Sequence[str]) -> list[Stored]:
    """Size and version of objects, in their order.

    Raises:
        UserError: As of :func:`list_store`, or if one does not exist.
    """
    listed: dict[str, Stored] = {}
    for folder in {url.rpartition("/")[0] for url in urls} if len(urls) > 1 else ():
        listed |= {one.url: one for one in list_store(folder) or () if one.size >= 0 and one.version}
    absent = [url for url in urls if url not in listed]
    with ThreadPoolExecutor(PARALLEL_QUESTIONS) as pool:
        listed |= zip(absent, pool.map(_state_of, absent))
    return [listed[url] for url in urls]


def read_range(url: str, start: int, end: int) -> bytes:
    """Bytes of an object from ``start`` to before ``end``; all of them from a server that does not answer by range.

    Raises:
        UserError: As of :func:`list_store`.
    """

    def read() -> bytes:
        store, path = _store_of(url)
        content: bytes = store.cat_file(path, start=start, end=end)
        if len(content) < end - start:
            raise OSError(f"{len(content):,} of {end - start:,} bytes came")
        return content

    try:
        return attempt(url, read)
    except FileNotFoundError as error:
        raise DataError(f"{printable(url)}: is no longer there") from error


def attempt(url: str, ask: Callable[[], Answer]) -> Answer:
    """Ask a store, again with growing pauses if it fails.

    Args:
        url: Object that is asked for.
        ask: The question; each store has errors of its own.

    Raises:
        FileNotFoundError: If there is no such object.
        MachineError: If it fails each time, or cannot be asked; one line with the last error.
    """
    for number in range(STORE_ATTEMPTS):
        try:
            return ask()
        except UserError:
            raise
        except ImportError as error:
            raise _missing_package(url, error) from error
        except Exception as failure:
            # fsspec takes any failure of a web server for an absent file.
            cause = failure.__cause__ if isinstance(failure, FileNotFoundError) else failure
            if not isinstance(cause, Exception) or getattr(cause, "status", None) == 404:
                raise
            if _refuses(cause):
                fix = ACCESS_FIXES.get(_protocol(url), "give what grants access to it")
                reason = f"access is refused, or credentials are missing ({_say(cause)})"
                raise MachineError(f"{printable(url)}: {reason}: {fix}") from failure
            if number == STORE_ATTEMPTS - 1:
                problem = f"cannot be read after {STORE_ATTEMPTS} attempts ({_say(cause)})"
                raise MachineError(f"{printable(url)}: {problem}: check the network and the store") from failure
        time.sleep(FIRST_PAUSE_SECONDS * 2**number)
    raise AssertionError("unreachable")


def _state_of(url: str) -> Stored:
    def state() -> Stored:
        store, path = _store_of(url)
        store.invalidate_cache()
        return _stored(url, store.info(path))

    try:
        found = attempt(url, state)
    except FileNotFoundError as error:
        raise DataError(f"{printable(url)}: does not exist, or may not be seen") from error
    if found.size < 0:
        raise DataError(f"{printable(url)}: the server does not tell its size: fetch it, and give the folder")
    return found


def _protocol(url: str) -> str:
    match = _URL.match(url)
    return match[1].lower() if match else "file"


def _store_of(url: str) -> tuple[Any, str]:
    """File system of a URL, which fsspec keeps for each process, and the path in it."""
    if is_absent("fsspec"):
        raise missing_package_error("fsspec", printable(url))
    import fsspec

    protocol = _protocol(url)
    options: dict[str, Any] = {}
    if (package := STORE_PACKAGES.get(protocol)) and is_absent(package):
        raise missing_package_error(package, printable(url))
    if protocol not in fsspec.available_protocols():
        known = ", ".join(f"{one}://" for one in ("s3", "gs", "hf", "https"))
        raise DataError(f"{printable(url)}: no store is known by {protocol}://: {known} and others of fsspec are")
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
        options = {"client_kwargs": {"timeout": timeout}}
    elif protocol in ("s3", "s3a"):
        options = {"config_kwargs": {"connect_timeout": SILENCE_SECONDS, "read_timeout": SILENCE_SECONDS}}
    store, path = fsspec.core.url_to_fs(url, **options)
    return store, path


def _stored(url: str, info: dict[str, Any]) -> Stored:
    size = info.get("size")
    # The files of Hugging Face that git keeps elsewhere are told apart by the hash there.
    known = [(info.get("lfs") or {}).get("sha256"), *(info.get(key) for key in (*VERSION_KEYS, *TIME_KEYS))]
    tag = next((str(one).strip('"') for one in known if one), "")
    version = int.from_bytes(hashlib.blake2b(tag.encode(), digest_size=7).digest(), "big") if tag else 0
    return Stored(url, info.get("type") == "directory", -1 if size is None else int(size), version)


def _refuses(error: Exception) -> bool:
    """Whether an error is about rights, or about missing credentials: no further attempt helps."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return isinstance(error, PermissionError) or status in (401, 403) or "Credential" in names or "Gated" in names


def _missing_package(url: str, error: ImportError) -> MachineError:
    package = STORE_PACKAGES.get(_protocol(url)) or (error.name or "fsspec").partition(".")[0]
    return missing_package_error(package, printable(url))


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error, 160)}" if str(error) else type(error).__name__
