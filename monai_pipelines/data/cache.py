"""Results of chains on disk: written whole, checked when read, made again when damaged."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from monai_pipelines.atomic import atomic_write, remove_old_parts
from monai_pipelines.claims import remove_old_claims
from monai_pipelines.walk import file_stats

Storage = Literal["float32", "float16", "int16", "uint8"]
STORAGES = ("float32", "float16", "int16", "uint8")
SUFFIX = ".entry"
_MAGIC = b"MPCACHE1"
_HEAD = struct.Struct("<8sIIQ")  # magic, CRC-32 of what follows, bytes of the note, bytes of the result
_MB = 2**20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PART_AGE_S = 600
_MIN_QUANTIZED = 4096  # elements: smaller tensors, such as affines and features, are kept as they are


class Cache:
    """A folder of results, one file each, under keys of what they were made of.

    A file ends with its rename, holds a checksum, and is safe under many workers and processes.

    Args:
        folder: created if missing; temporary files that a killed run left there are removed.
        storage: of floating-point tensors of 4,096 elements and more: "float32" (exact), "float16" (relative error up
            to 2**-11), "int16" or "uint8" (error up to 1/131,070 or 1/510 of the tensor's range).
    """

    def __init__(self, folder: str | PathLike[str], storage: Storage = "float32") -> None:
        if storage not in STORAGES:
            raise ValueError(f"Cache: storage must be one of {', '.join(STORAGES)}, got {storage!r}")
        self.folder, self.storage = Path(folder), storage
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_old_parts(self.folder, _PART_AGE_S)
        remove_old_claims(self.folder)

    def file(self, image: str, *made_by: Any) -> Path:
        """Where the result of an image is: changes with ``made_by``, and path, size or time of any of its files."""
        path = Path(image).resolve()
        key = repr((*made_by, self.storage, str(path), file_stats(path)))
        return self.folder / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}{SUFFIX}"

    def write(self, file: Path, result: Any, note: str = "") -> None:
        """Store plain data and tensors, and a note that `note` reads without them.

        Raises:
            OSError: the disk is full; says how much was wanted.
        """
        buffer = io.BytesIO()
        torch.save(_packed(result, self.storage), buffer)
        payload, note_bytes = buffer.getbuffer(), json.dumps(note).encode()
        crc = zlib.crc32(payload, zlib.crc32(note_bytes))
        try:
            with atomic_write(file) as part, part.open("wb") as out:
                out.write(_HEAD.pack(_MAGIC, crc, len(note_bytes), len(payload)))
                out.write(note_bytes)
                out.write(payload)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise no_space(self.folder, len(payload)) from error

    def note(self, file: Path) -> str | None:
        """The note of a complete entry; None if it is missing, cut or not an entry."""
        try:
            with file.open("rb") as opened:
                head = opened.read(_HEAD.size)
                magic, _, note_bytes, payload_bytes = _HEAD.unpack(head)
                if magic != _MAGIC or file.stat().st_size != _HEAD.size + note_bytes + payload_bytes:
                    return None
                return str(json.loads(opened.read(note_bytes)))
        except (FileNotFoundError, struct.error, ValueError):
            return None

    def read(self, file: Path) -> Any:
        """The result; None where it is missing or damaged."""
        try:
            data = memoryview(file.read_bytes())
            magic, crc, note_bytes, payload_bytes = _HEAD.unpack_from(data)
        except (FileNotFoundError, struct.error):
            return None
        body = data[_HEAD.size :]
        if magic != _MAGIC or len(body) != note_bytes + payload_bytes or zlib.crc32(body) != crc:
            return None
        return _unpacked(torch.load(io.BytesIO(body[note_bytes:]), weights_only=True))

    def has_space(self, wanted: int) -> bool:
        """Whether so many bytes fit."""
        return wanted <= shutil.disk_usage(self.folder).free


def no_space(folder: Path, wanted: int) -> OSError:
    """An error that says how much a full disk lacks."""
    free = shutil.disk_usage(folder).free
    return OSError(
        f"no space left on {folder}: {wanted / _MB:,.1f} MB needed, {free / _MB:,.1f} MB free or allowed; make space, "
        "name another cache_dir, or store it smaller (storage: float16 or uint8)"
    )


def entries(folder: str | PathLike[str]) -> Iterator[Path]:
    """The files of a cache, temporary ones among them."""
    for file in sorted(Path(folder).iterdir()):
        if file.suffix == SUFFIX or f"{SUFFIX}." in file.name:
            yield file


def _packed(value: Any, storage: Storage) -> Any:
    if isinstance(value, dict):
        return {key: _packed(part, storage) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_packed(part, storage) for part in value)
    if storage == "float32" or not isinstance(value, Tensor) or value.numel() < _MIN_QUANTIZED:
        return value
    if not value.is_floating_point():
        return value
    if storage == "float16":
        return {"quantized": value.half()}
    low, high = float(value.min()), float(value.max())
    levels = 255 if storage == "uint8" else 65535
    scale = (high - low) / levels or 1.0
    steps = ((value.double() - low) / scale).round()
    whole = steps.to(torch.uint8) if storage == "uint8" else (steps - 32768).to(torch.int16)
    return {"quantized": whole, "scale": scale, "low": low + (0 if storage == "uint8" else 32768 * scale)}


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict) and "quantized" in value:
        whole = value["quantized"]
        if whole.is_floating_point():
            return whole.float()
        return (whole.double() * value["scale"] + value["low"]).float()
    if isinstance(value, dict):
        return {key: _unpacked(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_unpacked, value))
    return value
