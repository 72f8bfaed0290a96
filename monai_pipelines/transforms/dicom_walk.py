"""Headers of usual DICOM files, several times as fast as by pydicom, which reads all others.

A file is a row of elements: tag, VR (explicit encodings only), length, value (DICOM PS3.5, 7.1). Only the tags and
lengths are looked at, but for the values that are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

HEADER_BYTES = 2**14
_LONGEST_HEADER_BYTES = 2**18
_UNDEFINED = 2**32 - 1
_CHARACTER_SET, _TRANSFER_SYNTAX, _MEDIA_CLASS, _PIXELS = 0x00080005, 0x00020010, 0x00020002, 0x7FE00010
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_EXPLICIT, _LENGTH = Struct("<HH2sH"), Struct("<L")
_SHORT = {vr.encode(): str(vr) for vr in EXPLICIT_VR_LENGTH_16}
_LONG = {vr.encode(): str(vr) for vr in EXPLICIT_VR_LENGTH_32}


class _UnusualError(Exception):
    """Left to pydicom."""


_Element = tuple[int, str | None, int, int]  # tag, VR, length, and where the value starts


def usual_dataset(file: Path, start: bytes, names: Sequence[str], defer_bytes: int) -> FileDataset | None:
    """Some values of a DICOM file, as ``pydicom.dcmread(file, defer_size, specific_tags)`` returns them.

    Args:
        file: DICOM.
        start: its first `HEADER_BYTES`.
        names: keywords of the values.
        defer_bytes: longer pixels stay in the file.

    Returns:
        None unless the file has a preamble, is little endian, neither compressed nor deflated, and ends with its
        pixels, and none of the values is a sequence: pydicom knows the rest, and what is wrong with it.
    """
    if start[128:132] != b"DICM":
        return None
    try:
        try:
            return _walk(file, start, names, defer_bytes)
        except (StructError, IndexError):  # a longer header
            with file.open("rb") as opened:
                return _walk(file, opened.read(_LONGEST_HEADER_BYTES), names, defer_bytes)
    except (StructError, IndexError, _UnusualError, UnicodeDecodeError):
        return None


def _walk(file: Path, data: bytes, names: Sequence[str], defer_bytes: int) -> FileDataset:
    end = file.stat().st_size
    meta = {_TRANSFER_SYNTAX: "", _MEDIA_CLASS: ""}
    stop = 132
    while data[stop : stop + 2] == b"\x02\x00":
        tag, _, length, at = _element(data, stop, implicit=False)
        stop = at + length
        if tag in meta:
            meta[tag] = _value(data, at, stop).decode("ascii").strip(" \0")
    syntax = meta[_TRANSFER_SYNTAX]
    if syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        raise _UnusualError
    implicit = syntax == ImplicitVRLittleEndian
    wanted, elements = _tags(tuple(names)), dict[BaseTag, Any]()
    while stop < end:
        tag, vr, length, at = _element(data, stop, implicit)
        stop = at + length if length != _UNDEFINED else _end_of_sequence(data, tag, vr, at, implicit)
        if tag not in wanted:
            continue
        if "SQ" in (vr, wanted[tag]) or length == _UNDEFINED:
            raise _UnusualError
        deferred = tag == _PIXELS and length > defer_bytes
        value: Any = None if deferred else _value(data, at, stop) or empty_value_for_VR(vr, raw=True)
        elements[BaseTag(tag)] = RawDataElement(BaseTag(tag), vr, length, value, at, implicit, True)
        if tag == _PIXELS:
            break
    if stop != end:  # truncated, or something follows the pixels
        raise _UnusualError
    return FileDataset(str(file), elements, data[:128], _file_meta(syntax, meta[_MEDIA_CLASS]), implicit, True)


def _element(data: bytes, at: int, implicit: bool) -> _Element:
    group, number, vr, length = _EXPLICIT.unpack_from(data, at)
    tag = group << 16 | number
    if implicit or group == 0xFFFE:
        return tag, None, _LENGTH.unpack_from(data, at + 4)[0], at + 8
    if vr in _SHORT:
        return tag, _SHORT[vr], length, at + 8
    if vr not in _LONG:
        raise _UnusualError
    return tag, _LONG[vr], _LENGTH.unpack_from(data, at + 8)[0], at + 12


def _end_of_sequence(data: bytes, tag: int, vr: str | None, at: int, implicit: bool) -> int:
    """Where the element after a sequence of undefined length starts."""
    if vr not in ("SQ", None) or tag == _PIXELS:
        raise _UnusualError
    while True:
        tag, _, length, at = _element(data, at, implicit)
        if tag == _END_OF_SEQUENCE:
            return at
        if tag != _ITEM:
            raise _UnusualError
        if length != _UNDEFINED:
            at += length
            continue
        while tag != _END_OF_ITEM:
            tag, vr, length, at = _element(data, at, implicit)
            at = at + length if length != _UNDEFINED else _end_of_sequence(data, tag, vr, at, implicit)


def _value(data: bytes, at: int, stop: int) -> bytes:
    if stop > len(data):
        raise IndexError
    return data[at:stop]


@cache
def _tags(names: tuple[str, ...]) -> dict[int, str]:
    """VR by tag, the character set among them, as pydicom has it."""
    return {_CHARACTER_SET: "CS"} | {int(Tag(name)): dictionary_VR(name) for name in names}


@cache
def _file_meta(syntax: str, media_class: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    if media_class:
        meta.MediaStorageSOPClassUID = UID(media_class)
    return meta
