"""Results of chains on disk: written whole, checked when read, made again when damaged."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from monai_pipelines.atomic import remove_old_parts
from monai_pipelines.claims import remove_old_claims
from monai_pipelines.errors import ScanError
from monai_pipelines.remote import (
    Place,
    Source,
    as_place,
    file_stats,
    files_below,
    local,
    read_start,
    results_folder,
    whole_write,
)

Storage = Literal["float32", "float16", "int16", "uint8"]
STORAGES = ("float32", "float16", "int16", "uint8")
SUFFIX = ".entry"
_MAGIC = b"MPCACHE1"
_HEAD = struct.Struct("<8sIIQ")  # magic, CRC-32 of what follows, bytes of the note, bytes of the result
_MB = 2**20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOTE_BYTES = 2**16  # with what comes before it
_PART_AGE_S = 600
_MIN_QUANTIZED = 4096  # elements: smaller tensors, such as affines and features, are kept as they are


class Cache:
    """A folder of results, one file each, under keys of what they were made of.

    A file ends with its rename, holds a checksum, and is safe under many workers and processes.

    Args:
        folder: created if missing; temporary files that a killed run left there are removed. Or a URL, such as
            ``s3://bucket/cache``.
        storage: of floating-point tensors of 4,096 elements and more: "float32" (exact), "float16" (relative error up
            to 2**-11), "int16" or "uint8" (error up to 1/131,070 or 1/510 of the tensor's range).
    """

    def __init__(self, folder: Source, storage: Storage = "float32") -> None:
        if storage not in STORAGES:
            raise ValueError(f"Cache: storage must be one of {', '.join(STORAGES)}, got {storage!r}")
        self.folder, self.storage = results_folder(folder), storage
        if isinstance(self.folder, Path):
            remove_old_parts(self.folder, _PART_AGE_S)
            remove_old_claims(self.folder)

    def file(self, image: Source, *made_by: Any) -> Place:
        """Where the result of an image is: changes with ``made_by``, and path, size or time of any of its files.

        Of an image at a URL with its ETag instead of the time, if there is one.
        """
        place = as_place(image)
        if isinstance(place, Path):
            place = place.resolve()
        name = str(place) if isinstance(place, Path) else place.identity()
        key = repr((*made_by, self.storage, name, file_stats(place)))
        return self.folder / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}{SUFFIX}"

    def write(self, file: Place, result: Any, note: str = "") -> None:
        """Store plain data and tensors, and a note that `note` reads without them.

        Raises:
            OSError: the disk is full; says how much was wanted.
            ScanError: the store does not take it.
        """
        buffer = io.BytesIO()
        torch.save(_packed(result, self.storage), buffer)
        payload, note_bytes = buffer.getbuffer(), json.dumps(note).encode()
        crc = zlib.crc32(payload, zlib.crc32(note_bytes))
        try:
            with whole_write(file) as part, part.open("wb") as out:
                out.write(_HEAD.pack(_MAGIC, crc, len(note_bytes), len(payload)))
                out.write(note_bytes)
                out.write(payload)
        except OSError as error:
            if error.errno not in _NO_SPACE or not isinstance(self.folder, Path):
                raise
            raise no_space(self.folder, len(payload)) from error

    def note(self, file: Place) -> str | None:
        """The note of a complete entry; None if it is missing, cut or not an entry."""
        try:
            start, size = read_start(file, _NOTE_BYTES)
            magic, _, note_bytes, payload_bytes = _HEAD.unpack_from(start)
            if magic != _MAGIC or size != _HEAD.size + note_bytes + payload_bytes:
                return None
            return str(json.loads(start[_HEAD.size :][:note_bytes]))
        except (FileNotFoundError, struct.error, ValueError):  # ScanError is one
            return None

    def read(self, file: Place) -> Any:
        """The result; None where it is missing or damaged."""
        try:
            with local(file) as path:
                data = memoryview(path.read_bytes())
            magic, crc, note_bytes, payload_bytes = _HEAD.unpack_from(data)
        except (FileNotFoundError, struct.error, ScanError):
            return None
        body = data[_HEAD.size :]
        if magic != _MAGIC or len(body) != note_bytes + payload_bytes or zlib.crc32(body) != crc:
            return None
        return _unpacked(torch.load(io.BytesIO(body[note_bytes:]), weights_only=True))

    def has_space(self, wanted: int) -> bool:
        """Whether so many bytes fit; those of stores are not bounded."""
        return not isinstance(self.folder, Path) or wanted <= shutil.disk_usage(self.folder).free


def no_space(folder: Place, wanted: int) -> OSError:
    """An error that says how much a full disk lacks."""
    free = shutil.disk_usage(folder).free if isinstance(folder, Path) else 0
    return OSError(
        f"no space left on {folder}: {wanted / _MB:,.1f} MB needed, {free / _MB:,.1f} MB free or allowed; make space, "
        "name another cache_dir, or store it smaller (storage: float16 or uint8)"
    )


def entries(folder: Source) -> Iterator[Place]:
    """The files of a cache, temporary ones among them."""
    place = as_place(folder)
    files: Sequence[Place] = sorted(place.iterdir()) if isinstance(place, Path) else files_below(place)
    for file in files:
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
