"""Zip archives of images, unpacked safely and once."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from os import PathLike
from pathlib import Path, PurePosixPath

from rich.progress import track

from monai_pipelines.errors import CohortError

MAX_RATIO = 200  # images hardly shrink in a zip, zip bombs do
MIN_BOMB_BYTES = 1 << 30
_NOT_IN_FILE_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')


def unpack(archive: str | PathLike[str], directory: str | PathLike[str] | None = None) -> Path:
    """Unpack a zip once into a new folder, completely or not at all.

    The folder is named after the archive and a hash of its name, size and time, so a changed archive is unpacked again.
    Archives with links, absolute paths or ``..`` are refused, as are encrypted ones and those that need more space than
    the disk has or far more than images can. Characters that are not allowed in file names become ``_``; hidden files
    and those added by macOS are ignored.

    Args:
        archive: the zip.
        directory: of the new folder; None: that of the archive.

    Returns:
        the folder.

    Raises:
        CohortError: lists all problems of the archive.
        OSError: the folder cannot be written.
    """
    archive = Path(archive)
    parent = archive.parent if directory is None else Path(directory)
    status = archive.stat()
    key = hashlib.sha256(repr((archive.name, status.st_size, status.st_mtime_ns)).encode()).hexdigest()[:8]
    folder = parent / f"{archive.stem}-{key}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            targets = _targets(archive, opened, shutil.disk_usage(parent).free)
            with tempfile.TemporaryDirectory(dir=parent, prefix=f".{folder.name}.") as temporary:
                whole = Path(temporary) / folder.name
                for name, entry in track(targets.items(), f"unpacking {archive.name}"):
                    (whole / name).parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(entry) as source, (whole / name).open("xb") as out:
                        shutil.copyfileobj(source, out, 1 << 20)
                try:
                    whole.rename(folder)
                except OSError:
                    if not folder.is_dir():  # another process was faster
                        raise
    except (zipfile.BadZipFile, EOFError, NotImplementedError, lzma.LZMAError, zlib.error) as error:
        raise CohortError(
            archive, [f"not a complete zip that can be unpacked ({error}); copy or download it again"]
        ) from error
    return folder


def _targets(archive: Path, opened: zipfile.ZipFile, free_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Entries by file name in the new folder."""
    targets: dict[str, zipfile.ZipInfo] = {}
    problems: list[str] = []
    for entry in opened.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        path = entry.filename.replace("\\", "/")
        parts = PurePosixPath(path).parts
        hidden = [part for part in parts if part.startswith(".") and part != ".."]
        if path.endswith("/") or hidden or "__MACOSX" in parts:
            continue
        if not parts or parts[0] == "/" or ".." in parts or re.match(r"[A-Za-z]:", parts[0]):
            problems.append(f"{entry.filename!r} points outside the archive")
        elif kind not in (0, stat.S_IFREG):
            problems.append(f"{entry.filename!r} is a link or device, not a file")
        elif entry.flag_bits & 0x1:
            problems.append(f"{entry.filename!r} is encrypted; unpack the archive yourself and use the folder")
        else:
            name = "/".join(_NOT_IN_FILE_NAMES.sub("_", part) for part in parts)
            if name in targets:
                problems.append(f"{name!r} is in it twice")
            targets[name] = entry
    packed = sum(entry.compress_size for entry in targets.values())
    unpacked = sum(entry.file_size for entry in targets.values())
    if unpacked > MIN_BOMB_BYTES and unpacked > MAX_RATIO * packed:
        problems.append(f"{packed / 1e6:.1f} MB would unpack to {unpacked / 1e9:.1f} GB: images never shrink that much")
    if unpacked > free_bytes:
        problems.append(
            f"wanted {unpacked / 1e9:.1f} GB of disk, got {free_bytes / 1e9:.1f} GB free; choose extract_dir"
        )
    if not targets:
        problems.append("no file in it")
    if problems:
        raise CohortError(archive, problems)
    return targets
