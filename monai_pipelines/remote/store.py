"""Objects in stores, through fsspec: described, read, written; errors that say what to do and never a secret."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure, silent_logs

READ_ONLY = ("http", "https")
TRIES = 6
PAUSE_S = 0.5  # before the second try; doubled before each further one
_NO_FOLDERS = "a web server has no folders that can be listed; name a file, or use s3:// or gs://"
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_IN_EXTRA = ("s3fs", "aiohttp")
_CONNECT_S, _SILENT_S = 30, 60
_MD5 = re.compile("[0-9a-f]{32}")
_TRY_AGAIN = (408, 425, 429)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "DefaultCredentialsError")

T = TypeVar("T")
_filesystems: dict[tuple[int, str], Any] = {}  # of each process: they do not survive a fork


class Info(NamedTuple):
    """What a store says about an object."""

    size: int | None
    """Bytes; None where the store does not say."""
    version: str
    """ETag, or else the time of the last change, or nothing."""
    md5: str
    """Hexadecimal; empty if unknown."""


class MissingError(ScanError):
    """No such object or folder."""


class _TornError(OSError):
    """Fewer bytes than announced, or others."""


def describe(url: str) -> Info | None:
    """What the store says about an object now; None: a folder.

    Raises:
        MissingError: neither object nor folder.
        ScanError: access denied, or no answer.
    """
    if scheme_of(url) in READ_ONLY and urlsplit(url).path.endswith("/"):
        raise ScanError(url, _NO_FOLDERS)
    info = _attempt(url, lambda fs, path: fs.info(path))
    return None if info["type"] == "directory" else _info(scheme_of(url), info)


def find(url: str) -> dict[str, Info]:
    """All objects below a folder, by their path in it, in order.

    Raises:
        ScanError: a web server, access denied, or no answer.
    """
    if scheme_of(url) in READ_ONLY:
        raise ScanError(url, _NO_FOLDERS)
    found = _attempt(url, lambda fs, path: (fs.find(path, detail=True), path.rstrip("/")))
    objects, folder = found
    listed = {name.removeprefix(folder).lstrip("/"): _info(scheme_of(url), info) for name, info in objects.items()}
    return {name: info for name, info in sorted(listed.items()) if name and not name.endswith("/")}


def download(url: str, file: Path, info: Info) -> None:
    """Copy an object to a file, and check it: its size, and its MD5 or that it is still the same.

    Raises:
        ScanError: access denied, no answer, torn again and again, or changed meanwhile.
    """

    def fetch(fs: Any, path: str) -> None:
        fs.get_file(path, str(file))
        if info.size is not None and (size := file.stat().st_size) != info.size:
            raise _TornError(f"{size:,} of {info.size:,} bytes")
        if info.md5 and _md5(file) != info.md5 and not _is_encrypted(fs, path):
            raise _TornError("its checksum differs")

    try:
        _attempt(url, fetch)
    except ScanError:
        if not isinstance(describe(url), Info) or describe(url) == info:
            raise
    if not info.md5 and describe(url) != info:
        raise ScanError(url, "it changed while it was read; run again when it is complete")


def read_range(url: str, start: int, length: int) -> bytes:
    """Some bytes of an object, which has them."""

    def read(fs: Any, path: str) -> bytes:
        data = fs.cat_file(path, start=start, end=start + length)
        if len(data) > length:  # the server knows no ranges and sends all
            data = data[start : start + length]
        if len(data) != length:
            raise _TornError(f"{len(data):,} of {length:,} bytes")
        return data

    return _attempt(url, read)


def upload(file: Path, url: str) -> None:
    """Copy a file to an object, which changes at once or not at all."""
    _attempt(url, lambda fs, path: fs.put_file(str(file), path))


def remove(url: str) -> None:
    """Remove an object."""
    _attempt(url, lambda fs, path: fs.rm_file(path))


def scheme_of(url: str) -> str:
    """Of s3://bucket/key: s3."""
    return url.partition("://")[0].lower()


def _filesystem(url: str) -> Any:
    """Raises ImportError where a package is missing."""
    scheme = scheme_of(url)
    if (fs := _filesystems.get((os.getpid(), scheme))) is not None:
        return fs
    from fsspec import get_filesystem_class

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if package := _PACKAGES.get(scheme):
        try:
            module = import_module(package)
        except ImportError as error:
            name = "'monai_pipelines[remote]'" if package in _IN_EXTRA else package
            raise ImportError(f"{scheme}:// wants the package {package}: pip install {name}") from error
        if scheme in READ_ONLY:  # without a limit for the whole download, which aiohttp has
            timeout = module.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENT_S)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}  # proxies
    try:
        made = get_filesystem_class(scheme)(**options)
    except ValueError:
        raise ScanError(url, f"{scheme}:// is not known; wanted s3://, gs://, https:// or another of fsspec") from None
    _filesystems[os.getpid(), scheme] = made
    return made


def _attempt(url: str, do: Callable[[Any, str], T]) -> T:
    """What ``do`` gives with the file system and the path in it, after a few tries if need be."""
    fs = _filesystem(url)
    path, reason = fs._strip_protocol(url), ""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE_S * 2 ** (number - 1) * random.uniform(0.5, 1.5))
        try:
            with silent_logs():  # of fsspec: they have the URL
                return do(fs, path)
        except (ScanError, ImportError):
            raise
        except Exception as error:
            reason = _reason(url, error)
    raise ScanError(url, f"{reason}, {TRIES} times; check the network and the server, then run again")


def _reason(url: str, error: Exception) -> str:
    """Why another try may help.

    Raises:
        ScanError: it will not.
        OSError: the local disk is full.
    """
    if isinstance(error, _TornError):
        return f"torn: {error}"
    causes = [*_causes(error)]
    if full := next((one for one in causes if getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT)), None):
        raise OSError(errno.ENOSPC, "no space left on the disk of the scratch folder") from full
    if any(type(one).__name__ in _NO_CREDENTIALS for one in causes):
        raise ScanError(
            url,
            "no credentials: set those of the store, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for a "
            "public bucket FSSPEC_S3_ANON=true",
        ) from None
    status = next((status for one in causes if (status := _status(one))), 0)
    if status in (401, 403) or any(isinstance(one, PermissionError) for one in causes):
        raise ScanError(
            url, "access denied; check the credentials and their rights, or whether there is such an object"
        ) from None
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and error.__cause__ is None):
        raise MissingError(url, "no such object or folder; relative paths in a table start at the table") from None
    if 400 <= status < 500 and status not in _TRY_AGAIN:
        raise ScanError(url, f"the server refuses it (HTTP {status}); check the URL") from None
    return f"HTTP {status}" if status else failure(causes[-1])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int:
    """Of aiohttp's and botocore's errors; otherwise 0."""
    status = getattr(error, "status", None)
    response = getattr(error, "response", None)
    if status is None and isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else 0


def _info(scheme: str, info: dict[str, Any]) -> Info:
    version = next((str(info[key]) for key in ("ETag", "etag") if info.get(key)), "").strip('"')
    times = (info[key] for key in ("LastModified", "Last-Modified", "mtime", "created") if info.get(key))
    md5 = ""
    if scheme in ("s3", "s3a") and _MD5.fullmatch(version):  # those of parts end with "-" and their number
        md5 = version
    elif encoded := info.get("md5Hash") or info.get("Content-MD5"):
        md5 = base64.b64decode(encoded).hex()
    return Info(info["size"], version or str(next(times, "")), md5)


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _is_encrypted(fs: Any, path: str) -> bool:
    """Whether S3 encrypts an object with a key of its own: then its ETag is no checksum of what it holds."""
    if not hasattr(fs, "call_s3"):
        return False
    bucket, key, _ = fs.split_path(path)
    head = fs.call_s3("head_object", Bucket=bucket, Key=key)
    return "SSECustomerAlgorithm" in head or head.get("ServerSideEncryption", "AES256") != "AES256"
