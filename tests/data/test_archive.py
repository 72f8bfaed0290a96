"""Archives: unpacked once, completely or not at all, and never outside their folder."""

from __future__ import annotations

import os
import shutil
import stat
import struct
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_LZMA, ZipFile, ZipInfo

import pytest

from monai_pipelines.data import folder as module
from monai_pipelines.data.folder import unpack
from monai_pipelines.errors import CohortError


def _zip(file: Path, **entries: bytes) -> Path:
    with ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file


def _files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def _refused(file: Path) -> list[str]:
    before = sorted(file.parent.rglob("*"))
    with pytest.raises(CohortError) as error:
        unpack(file)
    assert sorted(file.parent.rglob("*")) == before, "nothing is left behind"
    return error.value.problems


def test_content_and_names(tmp_path: Path) -> None:
    entries = {
        "a/1.png": b"one",
        "a/b/ü.png": b"two",
        "ab:c?.png": b"three",
        "__MACOSX/a/1.png": b"",
        "a/.DS_Store": b"",
    }
    folder = unpack(_zip(tmp_path / "set.zip", **entries))
    assert folder.parent == tmp_path
    assert _files(folder) == {"a/1.png": b"one", "a/b/ü.png": b"two", "ab_c_.png": b"three"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], "no temporary folder is left"
    elsewhere = unpack(tmp_path / "set.zip", tmp_path / "new" / "place")
    assert elsewhere.parent == tmp_path / "new" / "place"
    assert _files(elsewhere) == _files(folder)


def test_backslashes_separate_folders(tmp_path: Path) -> None:
    assert set(_files(unpack(_zip(tmp_path / "w.zip", **{"a\\": b"", "a\\b\\1.png": b"x"})))) == {"a/b/1.png"}


def test_unpacked_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _zip(tmp_path / "set.zip", **{"1.png": b"one"})
    folder = unpack(file)
    with monkeypatch.context() as context:
        context.setattr(module, "ZipFile", None, raising=False)
        context.setattr(module.zipfile, "ZipFile", None)
        assert unpack(file) == folder
    stat_before = file.stat()
    _zip(file, **{"1.png": b"two"})
    os.utime(file, ns=(stat_before.st_atime_ns, stat_before.st_mtime_ns + 10**9))
    assert _files(unpack(file)) == {"1.png": b"two"}
    assert _files(folder) == {"1.png": b"one"}


@pytest.mark.parametrize(
    "name", ["../out.png", "a/../../out.png", "/tmp/out.png", "..\\out.png", "C:\\out.png", "C:/x.png"]
)
def test_nothing_is_written_outside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    (problem,) = _refused(_zip(folder / "set.zip", **{"a.png": b"a", name: b"evil"}))
    assert problem == f"{name!r} points outside the archive"
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == [folder / "set.zip"]


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, kind in (("link.png", stat.S_IFLNK), ("pipe", stat.S_IFIFO), ("plain.png", stat.S_IFREG)):
            entry = ZipInfo(name)
            entry.external_attr = (kind | 0o777) << 16
            archive.writestr(entry, "/etc/passwd")
    problem = "is a link or device, not a file"
    assert _refused(tmp_path / "set.zip") == [f"'link.png' {problem}", f"'pipe' {problem}"]


def test_encrypted_doubled_and_empty(tmp_path: Path) -> None:
    file = _zip(tmp_path / "set.zip", **{"a.png": b"a", "b.png": b"b"})
    content = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flag in the first entry and in the directory
        where = content.index(signature) + offset
        content[where : where + 2] = struct.pack("<H", 1)
    file.write_bytes(content)
    assert _refused(file) == ["'a.png' is encrypted; unpack the archive yourself and use the folder"]
    assert _refused(_zip(tmp_path / "twice.zip", **{"a?.png": b"a", "a_.png": b"b"})) == ["'a_.png' is in it twice"]
    assert _refused(_zip(tmp_path / "empty.zip", **{"a/": b"", ".x": b"y"})) == ["no file in it"]


def test_bombs_and_full_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ZipFile(tmp_path / "bomb.zip", "w", ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(1 << 20))
    assert len(_files(unpack(tmp_path / "bomb.zip"))) == 1, "a small file may be empty"
    shutil.rmtree(unpack(tmp_path / "bomb.zip"))
    with monkeypatch.context() as context:
        context.setattr(module, "MIN_BOMB_BYTES", 1 << 19)
        (problem,) = _refused(tmp_path / "bomb.zip")
        assert problem.endswith("images never shrink that much")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    (problem,) = _refused(tmp_path / "bomb.zip")
    assert problem == "wanted 0.0 GB of disk, got 0.0 GB free; choose extract_dir"


def test_damaged_archives(tmp_path: Path) -> None:
    file = _zip(tmp_path / "set.zip", **{"a.png": b"a" * 1000, "b.png": b"b" * 1000})
    whole = file.read_bytes()
    file.write_bytes(whole[:1500])
    assert "not a complete zip" in _refused(file)[0]
    file.write_bytes(whole.replace(b"b" * 1000, b"b" * 999 + b"c"))
    assert "Bad CRC-32 for file 'b.png'" in _refused(file)[0]
    file.write_bytes(b"no zip at all")
    assert "copy or download it again" in _refused(file)[0]


@pytest.mark.parametrize("method", [ZIP_DEFLATED, ZIP_LZMA])
def test_damaged_streams(tmp_path: Path, method: int) -> None:
    """Refused by the decompressor, before any checksum."""
    with ZipFile(tmp_path / "set.zip", "w", method) as archive:
        archive.writestr("a.png", bytes(range(256)) * 20)
        start = 30 + len("a.png") + (9 if method == ZIP_LZMA else 0)
    content = bytearray((tmp_path / "set.zip").read_bytes())
    content[start : start + 20] = b"\xff" * 20
    (tmp_path / "set.zip").write_bytes(content)
    (problem,) = _refused(tmp_path / "set.zip")
    assert problem.startswith("not a complete zip that can be unpacked (")
