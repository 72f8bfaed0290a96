"""Markers planted wherever files of images name patients, studies and institutions, and a search for them."""

from __future__ import annotations

import base64
import gzip
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
from PIL import Image
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

MARKER = "ZZMARKER"
UID_ROOT = "1.2.826.0.1.99887766"
DATE, AGE, WEIGHT = "18991231", "117Y", "77.7654321"
_TEXTS = (MARKER, "99887766", DATE, "1899-12-31", WEIGHT)
_NEEDLE = re.compile(
    b"|".join(
        re.escape(text.encode(code)) for text in _TEXTS for code in ("ascii", "utf-16-le", "utf-16-be", "utf-32-le")
    ),
    re.I,
)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{40,}={0,2}")

# Of the modules Patient, Patient Study, General Study, General Series, General Equipment, Frame of Reference, General
# Image and SOP Common (DICOM PS3.3), texts that no bundle may show; an audit names the scanners, `SCANNER`.
SCANNER = ("Manufacturer", "ManufacturerModelName")
KEYWORDS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientBirthTime", "PatientSex"),
    *("OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress"),
    *("PatientTelephoneNumbers", "EthnicGroup", "Occupation", "PatientComments", "PatientReligiousPreference"),
    *("ResponsiblePerson", "ResponsibleOrganization", "MilitaryRank", "BranchOfService", "CountryOfResidence"),
    *("RegionOfResidence", "MedicalRecordLocator", "InsurancePlanIdentification", "PatientState", "PatientAge"),
    *("PatientSize", "PatientWeight", "MedicalAlerts", "Allergies", "SmokingStatus", "AdditionalPatientHistory"),
    *("LastMenstrualDate", "AdmissionID", "AdmittingDiagnosesDescription", "ReasonForStudy", "ReasonForVisit"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription"),
    *("ReferringPhysicianName", "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers"),
    *("PhysiciansOfRecord", "ConsultingPhysicianName", "NameOfPhysiciansReadingStudy", "RequestingPhysician"),
    *("RequestingService", "StudyComments", "SeriesInstanceUID", "SeriesDate", "SeriesTime", "SeriesDescription"),
    *("PerformingPhysicianName", "OperatorsName", "ProtocolName", "BodyPartExamined", "PerformedProcedureStepID"),
    *("PerformedProcedureStepStartDate", "PerformedProcedureStepDescription", "RequestedProcedureDescription"),
    *("InstitutionName", "InstitutionAddress", "StationName"),
    *("InstitutionalDepartmentName", "DeviceSerialNumber", "SoftwareVersions", "GantryID", "DeviceUID"),
    *("DateOfLastCalibration", "FrameOfReferenceUID", "PositionReferenceIndicator", "SOPInstanceUID"),
    *("InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID", "ContentDate", "ContentTime"),
    *("AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "AcquisitionUID", "AcquisitionComments"),
    *("ImageComments", "DerivationDescription", "ContrastBolusAgent", "SynchronizationFrameOfReferenceUID"),
    *("ClinicalTrialSponsorName", "ClinicalTrialSubjectID", "ClinicalTrialSiteName", "TextComments", "LongCodeValue"),
)
_BY_VR: dict[str, Any] = {"DA": DATE, "TM": "235959", "DT": f"{DATE}235959", "AS": AGE, "DS": WEIGHT}


def value_of(keyword: str) -> Any:
    """A marked value that the attribute's VR allows."""
    vr, number = dictionary_VR(keyword), KEYWORDS.index(keyword) if keyword in KEYWORDS else len(KEYWORDS)
    return _BY_VR.get(vr, f"{UID_ROOT}.{number}" if vr == "UI" else f"{MARKER}{number}")


@cache
def _marks() -> dict[BaseTag, Any]:
    """Marked data elements, encoded."""
    dataset = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword in KEYWORDS:
            setattr(dataset, keyword, value_of(keyword))
        person = Dataset()
        person.PatientName, person.PatientID, person.ReferencedSOPInstanceUID = f"{MARKER}^A", f"{MARKER}B", UID_ROOT
        for keyword in ("OtherPatientIDsSequence", "ReferencedStudySequence", "RequestAttributesSequence"):
            setattr(dataset, keyword, [person])
        private = dataset.private_block(0x0009, f"{MARKER} PRIVATE", create=True)
        private.add_new(1, "LO", f"{MARKER}C")
        private.add_new(2, "UN", f"{MARKER}D ".encode())
        private.add_new(3, "SQ", [person])
        out = BytesIO()
        pydicom.dcmwrite(out, dataset, implicit_vr=False, little_endian=True)
        out.seek(0)
        return dict(pydicom.dcmread(out, force=True)._dict)


def mark_dicom(file: Path) -> None:
    """Plant markers in a DICOM file of explicit VR; instances and series remain distinct."""
    dataset = pydicom.dcmread(file)
    uids = {name: f"{UID_ROOT}.{dataset[name].value[-24:].strip('.0')}" for name in _UIDS if name in dataset}
    dataset._dict.update(_marks())
    for keyword, value in uids.items():
        setattr(dataset, keyword, value)
    meta = dataset.file_meta
    meta.MediaStorageSOPInstanceUID = uids.get("SOPInstanceUID", UID_ROOT)
    meta.SourceApplicationEntityTitle, meta.ImplementationVersionName = f"{MARKER}E", f"{MARKER}F"
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = UID_ROOT, f"{MARKER}G ".encode()
    dataset.preamble = f"{MARKER}H".encode().ljust(128, b"\0")
    dataset.save_as(file)


_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


def put(file: Path, tag: str, value: bytes) -> None:
    """A value as it is, whatever the VR allows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(file)
        vr = dataset[tag].VR if tag in dataset else dictionary_VR(tag).split(" ")[0]
        value += b" " * (len(value) % 2)
        dataset._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
        dataset.save_as(file)


def exif() -> Image.Exif:
    """Markers as a camera or a scanner writes them."""
    data = Image.Exif()
    for tag in (0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8298, 0x9C9B, 0x9C9D):
        data[tag] = f"{MARKER}X" if tag < 0x9C9B else f"{MARKER}X".encode("utf-16-le")
    data[0x0132] = f"{DATE[:4]}:12:31 23:59:59"
    return data


def mark_picture(file: Path) -> None:
    """Plant markers beside the pixels of a PNG or JPEG file."""
    data = file.read_bytes()
    if data.startswith(b"\x89PNG"):
        text = f"Comment\0{MARKER}P".encode()
        packed = b"Title\0\0" + zlib.compress(f"{MARKER}Q".encode())
        chunks = [(b"tEXt", text), (b"zTXt", packed), (b"eXIf", exif().tobytes()[6:])]
        made = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
        file.write_bytes(data[:33] + made + data[33:])
    elif data.startswith(b"\xff\xd8"):
        segments = [(b"\xff\xe1", exif().tobytes()), (b"\xff\xfe", f"{MARKER}R".encode())]
        made = b"".join(kind + struct.pack(">H", len(c) + 2) + c for kind, c in segments)
        file.write_bytes(data[:2] + made + data[2:])


def mark_tiff(file: Path) -> None:
    """Plant markers in the tags of a little-endian TIFF's first page, which keeps its pixels where they are."""
    data = bytearray(file.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = [bytes(data[start + 2 + 12 * k : start + 14 + 12 * k]) for k in range(count)]
    (following,) = struct.unpack_from("<I", data, start + 2 + 12 * count)
    for tag in (270, 271, 272, 305, 306, 315, 316, 33432):  # description, make, model, ..., artist, host, copyright
        text = f"{MARKER} {tag} {DATE}\0".encode()
        entries = [entry for entry in entries if struct.unpack_from("<H", entry)[0] != tag]
        entries.append(struct.pack("<HHII", tag, 2, len(text), len(data)))
        data += text + b"\0" * (len(text) % 2)
    struct.pack_into("<I", data, 4, len(data))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    data += struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", following)
    file.write_bytes(data)


def mark_folder(folder: Path) -> None:
    """Plant markers in every image below a folder."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        start = file.read_bytes()[:132]
        if start[128:] == b"DICM":
            mark_dicom(file)
        elif start.startswith(b"II*\0"):
            mark_tiff(file)
        else:
            mark_picture(file)


# ---- search


def find_markers(data: bytes, place: str = "text") -> list[str]:
    """Where markers stand in a file's content, however it is packed."""
    return sorted({f"{name}: {found}" for name, part in _parts(data, place) for found in _found(part)})


def find_in_folder(folder: Path) -> list[str]:
    """Where markers stand below a folder, in names too."""
    files = sorted(folder.rglob("*"))
    assert files, f"nothing was written to {folder}"
    names = "\n".join(file.relative_to(folder).as_posix() for file in files)
    found = find_markers(names.encode(), "names of files")
    for file in files:
        if file.is_file():
            found += find_markers(file.read_bytes(), file.relative_to(folder).as_posix())
    return found


def _found(data: bytes) -> Iterator[str]:
    for match in _NEEDLE.finditer(data):
        yield data[match.start() : match.end() + 12].decode("latin-1")


def _parts(data: bytes, place: str) -> Iterator[tuple[str, bytes]]:
    """The content, and what is unpacked from it."""
    yield place, data
    if data.startswith(b"\x1f\x8b"):
        yield from _parts(gzip.decompress(data), f"{place}, unpacked")
    elif data.startswith(b"\x89PNG"):
        with Image.open(BytesIO(data)) as picture:
            picture.load()
            yield f"{place}, texts", repr((picture.info, dict(picture.getexif()))).encode()
    elif data.startswith(b"\x89HDF"):
        with h5py.File(BytesIO(data)) as file:
            yield from _hdf5(file, place)
    elif zipfile.is_zipfile(BytesIO(data)):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            for name in archive.namelist():
                yield f"{place}, {name}", archive.read(name)
    elif b"base64," in data:
        for number, match in enumerate(_BASE64.finditer(data)):
            text = match.group()
            yield from _parts(base64.b64decode(text[: len(text) // 4 * 4]), f"{place}, base64 {number}")


def _hdf5(file: h5py.File, place: str) -> Iterator[tuple[str, bytes]]:
    nodes = [("/", file)]
    file.visititems(lambda name, node: nodes.append((name, node)))
    for name, node in nodes:
        yield f"{place}, {name}", repr(dict(node.attrs)).encode()
        if isinstance(node, h5py.Dataset):
            yield f"{place}, {name}", np.asarray(node[()]).tobytes()
