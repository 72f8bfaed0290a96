"""CT slices on disk, sorted out: which files are slices of which series, and which series is meant."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from monai_pipelines.errors import ScanError
from monai_pipelines.remote import Place
from monai_pipelines.transforms.dicom import Header, read_header
from monai_pipelines.walk import is_text, is_utf8, walk_files

TAGS = (
    "AcquisitionNumber", "BitsAllocated", "BitsStored", "Columns", "ConvolutionKernel", "HighBit",
    "ImageOrientationPatient", "ImagePositionPatient", "ImageType", "Manufacturer", "ManufacturerModelName", "Modality",
    "ModalityLUTSequence", "NumberOfFrames", "PatientID", "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation", "PixelData", "PixelPaddingRangeLimit", "PixelPaddingValue", "PixelRepresentation",
    "PixelSpacing", "RescaleIntercept", "RescaleSlope", "RescaleType", "Rows", "SOPClassUID", "SOPInstanceUID",
    "SamplesPerPixel", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "SharedFunctionalGroupsSequence",
    "SliceThickness", "SpacingBetweenSlices", "TemporalPositionIdentifier", "TriggerTime",
)  # fmt: skip
SIDECARS = (".csv", ".tsv", ".txt", ".json", ".yaml", ".md", ".xml", ".html", ".pdf", ".png", ".jpg", ".jpeg", ".raw",
            ".zraw", ".raw.gz", ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".zip")  # fmt: skip
# Attributes that distinguish the stacks of a series.
_STACK_TAGS = (
    "StackID", "TemporalPositionIndex", "TemporalPositionIdentifier", "NominalPercentageOfCardiacPhase", "TriggerTime",
    "AcquisitionNumber", "ConvolutionKernel", "SliceThickness", "FrameType", "ImageType",
)  # fmt: skip
_CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_MODALITIES = (
    *("CR", "CT", "DOC", "DX", "ECG", "ES", "GM", "IO", "KO", "MG", "MR", "NM", "OP", "OPT", "OT", "PR", "PT", "PX"),
    *("REG", "RF", "RTDOSE", "RTIMAGE", "RTPLAN", "RTSTRUCT", "SC", "SEG", "SM", "SR", "US", "XA", "XC"),
)
# Numbers, and vendors' kernels such as B30f, FC51 or LUNG: whatever else stands there may be text about a patient.
_CODE = re.compile(
    r"\d{1,6}(\.\d{1,6})?|[A-Z][A-Za-z]?(\d{1,3}[a-z]?)?|STANDARD|SOFT|SMOOTH|SHARP|LUNG|BONE|BONEPLUS|DETAIL|CHEST|EDGE"
)
_ROUNDING_MM = 0.11  # positions may be rounded to 0.1 mm


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice with its checked place in space, LPS mm."""

    header: Header
    frame: int
    num_frames: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    """Directions of a row and of a column (6,)."""
    spacing: NDArray[np.float64]
    """Distance of rows and of columns, mm."""
    shape: tuple[int, int]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Of its plane."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    def lies_as(self, other: Slice) -> bool:
        """Whether rows, columns, spacing and orientation are those of another slice."""
        return (
            self.shape == other.shape
            and bool((abs(self.spacing - other.spacing) <= 1e-3 * other.spacing).all())
            and bool((abs(self.orientation - other.orientation) <= 1e-3).all())
        )


@dataclass(eq=False)
class Series:
    """Slices that belong together, in order along their normal."""

    slices: list[Slice]
    stack: str = ""
    """The attribute that distinguishes it from other stacks of its series, as text."""

    def __post_init__(self) -> None:
        normal = self.slices[0].normal
        self.slices = sorted(self.slices, key=lambda s: float(s.position @ normal))

    @property
    def header(self) -> Header:
        """Of the first slice."""
        return self.slices[0].header

    @cached_property
    def origins(self) -> NDArray[np.float64]:
        """Positions of the slices (N, 3), LPS mm."""
        return np.array([s.position for s in self.slices])

    @cached_property
    def along_mm(self) -> NDArray[np.float64]:
        """Positions along the normal (N,)."""
        return self.origins @ self.slices[0].normal

    @property
    def step_mm(self) -> float:
        """Usual distance between slices."""
        return float(np.median(np.diff(self.along_mm))) if len(self.slices) > 1 else 0.0

    def is_doubled(self) -> bool:
        """Whether two slices lie at the same position."""
        return len(self.slices) > 1 and bool(np.diff(self.along_mm).min() < max(0.005, 0.05 * self.step_mm))

    def is_even(self, tolerance_mm: float = 0.0) -> bool:
        """Whether all steps are equal, but for rounding."""
        allowed = max(min(max(_ROUNDING_MM, 0.01 * self.step_mm), 0.3 * self.step_mm), tolerance_mm)
        return not self.is_doubled() and bool(np.abs(np.diff(self.along_mm) - self.step_mm).max(initial=0) <= allowed)

    def __str__(self) -> str:
        number, kernel = (self.header.text(name) for name in ("SeriesNumber", "ConvolutionKernel"))
        number = number if re.fullmatch(r"\d{1,6}", number) else "?"
        kernel = f", kernel {kernel}" if _CODE.fullmatch(kernel) else ""
        stack = f", {self.stack}" if self.stack else ""
        num = len(self.slices)
        slices = "1 slice" if num == 1 else f"{num} slices every {self.step_mm:.3g} mm"
        return f"series {number}{stack} ({slices}{kernel})"


@dataclass
class Found:
    """What lies in a folder, or in a file of several frames."""

    path: Path
    slices: list[Slice] = field(default_factory=list)
    unusable: list[tuple[str, ScanError]] = field(default_factory=list)
    """SeriesInstanceUID of a file, and why it is not a CT slice."""
    others: Counter[str] = field(default_factory=Counter)
    """Files of other kinds, set aside."""
    notes: list[str] = field(default_factory=list)


def _files(folder: Path) -> list[Path]:
    files = list(walk_files(folder))
    broken = [file for file in files if not file.is_file() and not is_sidecar(file)]
    if broken:
        raise ScanError(
            folder, f"broken links: {len(broken)}, such as {broken[0].name}; fetch the data they point to, or mount it"
        )
    return [file for file in files if file.is_file()]


def is_sidecar(file: Place) -> bool:
    """Whether the name of a file beside slices shows that it is not one."""
    return file.name.lower().endswith(SIDECARS) or file.name.upper() == "DICOMDIR"


@contextmanager
def _no_collection() -> Iterator[None]:
    """Headers are thousands of small objects without cycles: to look for some takes longer than to read them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def find_slices(path: Path) -> Found:
    """The CT slices in a folder or file, and what else is there.

    Raises:
        ScanError: damaged files, or a file that is neither DICOM nor a known companion of it.
    """
    found = Found(path)
    headers: dict[str, Header] = {}
    copies = 0
    files = _files(path) if path.is_dir() else [path]
    if strange := sum(not is_utf8(file) for file in files):
        found.notes.append(f"file names that are not UTF-8: {strange}")
    for file in files:
        try:
            header = read_header(file, TAGS)
        except InvalidDicomError:
            if path == file:
                raise
            if not is_sidecar(file) and not is_text(file):
                raise ScanError(file, "not DICOM (truncated?); copy it again or remove it") from None
            found.others["file that is not DICOM"] += 1
            continue
        uid = header.text("SOPInstanceUID")
        if uid in headers and _same_image(headers[uid], header):
            if header.element("NumberOfFrames") is not None:
                raise ScanError(file, "a copy of another file, and each is a whole volume; remove one")
            copies += 1
            continue
        if uid:
            headers.setdefault(uid, header)
        kind = _other_kind(header)
        try:
            if kind in ("DICOMDIR", "scout"):
                found.others[kind] += 1
            elif kind:
                raise header.error(f"wanted a CT slice, got {kind}", "LoadCT reads Hounsfield units")
            else:
                found.slices += _slices(header)
        except ScanError as error:
            found.unusable.append((header.text("SeriesInstanceUID"), error))
    if copies:
        found.notes.append(f"duplicate files left out: {copies}")
    return found


def _other_kind(header: Header) -> str:
    """What a file is, if not a CT slice; empty if it is one."""
    sop_class = UID(header.text("SOPClassUID") or str(header.dataset.file_meta.get("MediaStorageSOPClassUID", "")))
    modality = header.text("Modality")
    if sop_class.name == "Media Storage Directory Storage":
        return "DICOMDIR"
    if "LOCALIZER" in header.text("ImageType").upper():
        return "scout"
    if modality != "CT":
        other = "another Modality" if modality else "no Modality (truncated?)"
        return f"Modality {modality}" if modality in _MODALITIES else other
    if sop_class and sop_class not in _CT_CLASSES:
        return sop_class.name if sop_class.name != sop_class else "an unknown SOP class"
    return ""


def _same_image(one: Header, other: Header) -> bool:
    names = ("SeriesInstanceUID", "ImagePositionPatient", "Rows", "Columns", "NumberOfFrames")
    if any(one.text(n) != other.text(n) for n in names):
        return False
    return bool(one.dataset.get("PixelData") == other.dataset.get("PixelData"))


def _slices(header: Header) -> list[Slice]:
    """The slices of a file: one, or each frame."""
    num = header.integer("NumberOfFrames", 1, 100_000, default=1)
    if header.element("PixelData") is None:
        raise header.error("no PixelData: truncated, or not a CT slice")
    if header.integer("SamplesPerPixel", 1, 4, default=1) != 1:
        raise header.error("wanted one value per pixel, got a color image", "leave it out")
    names = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    frames, shared = (() if header.element(name) is None else header.dataset[name].value for name in names)
    if num == 1 and not frames:
        return [_slice(header, 0, 1)]
    if len(frames) != num:
        raise header.error(
            f"frames without a place in space: {num}; a capture, not a volume", "use the original series"
        )
    common = [group for item in shared for group in _groups(item)]
    headers = [Header(header.file, header.dataset, [*_groups(item), *common]) for item in frames]
    return [_slice(one, k, num) for k, one in enumerate(headers)]


def _groups(item: Any) -> list[Any]:
    """The functional groups of a frame, or those of all frames, and what lies in them."""
    groups = [element.value[0] for element in item if element.VR == "SQ" and element.value]
    return groups + [inner for group in groups for inner in _groups(group)]


def _slice(header: Header, frame: int, num_frames: int) -> Slice:
    orientation = header.numbers("ImageOrientationPatient", 6, -1.01, 1.01)
    row, column = orientation[:3], orientation[3:]
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 0.02:
        raise header.error("ImageOrientationPatient: wanted two directions at right angles")
    return Slice(
        header,
        frame,
        num_frames,
        header.numbers("ImagePositionPatient", 3, -1e5, 1e5),
        orientation,
        header.numbers("PixelSpacing", 2, 0.01, 20),
        (header.integer("Rows", 1, 2**15), header.integer("Columns", 1, 2**15)),
    )


def choose_series(found: Found, policy: str | int) -> tuple[Series, list[str]]:
    """One series of those found.

    Args:
        found: of `find_slices`.
        policy: of `LoadCT`.

    Returns:
        the series, and notes about the choice.

    Raises:
        ScanError: no series; several where one is wanted; slices of several patients; a faulty file in the series.
    """
    all_series = _group(found)
    if not all_series:
        raise _nothing(found)
    chosen = _matching(found, all_series, policy)
    if len({s.header.text("PatientID") for series in chosen for s in series.slices}) > 1:
        raise ScanError(found.path, "scans of several patients; name the folder of one")
    best = chosen[0]
    if len(chosen) > 1:
        if policy == "error":
            names = "; ".join(map(str, chosen))
            raise ScanError(found.path, f"{len(chosen)} series: {names}; choose one by number, UID or description")
        if policy == "thinnest":
            best = min(chosen, key=lambda s: (s.step_mm, -len(s.slices)))
        else:
            best = max(chosen, key=lambda s: len(s.slices))
    uid = best.header.text("SeriesInstanceUID")
    for other, error in found.unusable:
        if other in (uid, ""):
            raise error
    rest = [str(series) for series in all_series if series is not best]
    return best, found.notes + ([f"{best} chosen, not {'; '.join(rest)}"] if rest else [])


def _nothing(found: Found) -> ScanError:
    if found.unusable and len({uid for uid, _ in found.unusable}) == 1:
        return found.unusable[0][1]
    kinds = found.others + Counter(error.reason.partition(";")[0] for _, error in found.unusable)
    content = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "no files"
    return ScanError(found.path, f"wanted a CT series, got {content}; name the series folder itself")


def _matching(found: Found, all_series: list[Series], policy: str | int) -> list[Series]:
    if policy in ("largest", "thinnest", "error"):
        return all_series
    if isinstance(policy, int):
        matching = [s for s in all_series if s.header.text("SeriesNumber") == str(policy)]
    elif re.fullmatch(r"[\d.]+", policy):
        matching = [s for s in all_series if s.header.text("SeriesInstanceUID") == policy]
    else:
        matching = [s for s in all_series if re.search(policy, s.header.text("SeriesDescription"), re.I)]
    if not matching:
        names = "; ".join(map(str, all_series))
        raise ScanError(found.path, f"no series fits {policy!r}; there are: {names}")
    return matching


def _group(found: Found) -> list[Series]:
    """Series by UID, geometry and any other attribute that distinguishes stacks, in order of number and UID."""
    by_uid: dict[str, list[list[Slice]]] = {}
    for one in found.slices:
        stacks = by_uid.setdefault(one.header.text("SeriesInstanceUID"), [])
        stack = next((stack for stack in stacks if one.lies_as(stack[0])), None)
        if stack:
            stack.append(one)
        else:
            stacks.append([one])
    all_series = []
    for stacks in by_uid.values():
        if len(stacks) > 1 and min(map(len, stacks)) < 3:
            raise _inconsistent(found.path, stacks)
        all_series += [series for stack in stacks for series in _apart(stack)]
    singles = [series for series in all_series if len(series.slices) == 1]
    if len(all_series) > len(singles) and singles:
        found.notes.append(f"single slices of other series set aside: {len(singles)}")
        all_series = [series for series in all_series if len(series.slices) > 1]

    def order(series: Series) -> tuple[int, str]:
        number = series.header.text("SeriesNumber")
        return int(number) if number.isdecimal() else 0, series.header.text("SeriesInstanceUID")

    return sorted(all_series, key=order)


def _apart(slices: list[Slice]) -> list[Series]:
    """The stack, or the evenly spaced stacks that it consists of."""
    whole = Series(slices)
    if whole.is_even():
        return [whole]
    for name in _STACK_TAGS:
        parts: dict[str, list[Slice]] = {}
        for one in slices:
            parts.setdefault(one.header.text(name), []).append(one)
        stacks = [
            Series(part, f"{name} {value}" if _CODE.fullmatch(value) else f"{name} no. {number}")
            for number, (value, part) in enumerate(parts.items(), start=1)
        ]
        if len(stacks) > 1 and all(len(stack.slices) > 2 and stack.is_even() for stack in stacks):
            return stacks
    return [whole]


def _inconsistent(path: Path, stacks: Sequence[Sequence[Slice]]) -> ScanError:
    values = {
        "Rows x Columns": {stack[0].shape for stack in stacks},
        "PixelSpacing": {tuple(np.round(stack[0].spacing, 4).tolist()) for stack in stacks},
        "ImageOrientationPatient": {tuple(np.round(stack[0].orientation, 4).tolist()) for stack in stacks},
    }
    name, kinds = next((n, k) for n, k in values.items() if len(k) > 1)
    shown = ", ".join(map(str, sorted(kinds)[:4]))
    return ScanError(
        path, f"slices of one series with {len(kinds)} different {name}: {shown}; keep one series per folder"
    )
