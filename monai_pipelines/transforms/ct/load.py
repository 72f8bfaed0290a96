"""CT from disk in Hounsfield units."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure
from monai_pipelines.remote import Place, Remote, as_place, local
from monai_pipelines.transforms.ct.formats import ITK_SUFFIXES, NIFTI_SUFFIXES, read_itk, read_nifti
from monai_pipelines.transforms.ct.grid import placed
from monai_pipelines.transforms.ct.series import Series, Slice, choose_series, find_slices
from monai_pipelines.transforms.ct.volume import AIR_HU, LPS_TO_RAS, Volume, checked, evenly_spaced, to_int16
from monai_pipelines.transforms.dicom import Header, quiet_pydicom, stored_values
from monai_pipelines.transforms.keyed import EachKeyd

logger = logging.getLogger(__name__)

_RESCALE_TYPES = ("ED", "EDW", "HU_MOD", "MGML", "OD", "PCT", "US", "Z_EFF")  # DICOM PS3.3 C.11.1.1.2
_TISSUE_HU = (-1000, 3000)  # a padding value in this range may be tissue


class LoadCT(Transform):
    """Read a CT into Hounsfield units with its position in space.

    Takes a folder with DICOM files, one DICOM file (a slice, or an enhanced multi-frame CT; gzipped or not), NIfTI
    (``.nii``, ``.nii.gz``), NRRD or MetaImage. DICOM slices and frames are ordered by position along the slice normal,
    never by file name or InstanceNumber; each has its rescale slope and intercept, and its padding becomes air. In a
    folder, everything below it counts; scouts, captures, reports, other modalities, DICOMDIR and documents are set
    aside. Voxels keep the order of the file; the affine locates them.

    All of these may also be at a URL, such as ``s3://bucket/series``; see `monai_pipelines.remote.local`.
    A volume (1, X, Y, Z) in HU that is loaded already is taken, too, if it is a `MetaTensor`, whose affine locates it.

    Differs from `monai.data.LoadImage`: int16 instead of float32; what is not one regular stack of valid slices
    is repaired on request or an error, instead of a wrong volume.

    Args:
        series: which one of several in a folder (or stacks in one file): "largest" (number of slices; the others are
            named in a warning), "thinnest" (distance of slices), "error", a SeriesNumber (int), a SeriesInstanceUID, or
            a regular expression for SeriesDescription.
        uneven: slices at uneven distances, or missing ones: "error", "resample" to the usual distance (linear), or
            the largest deviation in mm that is taken for even.
        tilt: gantry tilt, or axes not at right angles: "error", or "correct" by moving the slices within their planes
            (linear).
        no_rescale: DICOM without RescaleSlope and RescaleIntercept: "error", or "hu" where stored values are HU.

    Returns:
        `MetaTensor` (1, X, Y, Z) int16 in HU; ``affine`` (4, 4) float64 maps voxels to RAS mm;
        ``meta["filename_or_obj"]`` is the given path, if any, ``meta["verdict"]`` "ok", or what was chosen, repaired or
        odd, ``meta["scanner"]`` manufacturer and model, empty if unknown.

    Raises:
        ScanError: an unreadable file, an implausible header or an irregular series; a volume without an affine, or of
            another shape; says how to fix it.

    Example:
        >>> from monai_pipelines.transforms import LoadCT
        >>> from pydicom.data import get_testdata_file
        >>> volume = LoadCT()(get_testdata_file("CT_small.dcm"))
        >>> volume.shape, volume.dtype
        (torch.Size([1, 128, 128, 1]), torch.int16)

    Reference: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.3 (image pixel), C.7.6.16 (functional groups), C.11.1
    (modality LUT).
    """

    def __init__(
        self,
        series: str | int = "largest",
        uneven: Literal["error", "resample"] | float = "error",
        tilt: Literal["error", "correct"] = "error",
        no_rescale: Literal["error", "hu"] = "error",
    ) -> None:
        if uneven not in ("error", "resample") and not (isinstance(uneven, (int, float)) and uneven >= 0):
            raise ValueError(f"LoadCT: uneven must be 'error', 'resample' or a tolerance in mm, got {uneven!r}")
        if tilt not in ("error", "correct"):
            raise ValueError(f"LoadCT: tilt must be 'error' or 'correct', got {tilt!r}")
        if no_rescale not in ("error", "hu"):
            raise ValueError(f"LoadCT: no_rescale must be 'error' or 'hu', got {no_rescale!r}")
        if isinstance(series, str):
            re.compile(series)
        self.series, self.uneven, self.tilt, self.no_rescale = series, uneven, tilt, no_rescale

    def __call__(self, path: str | PathLike[str] | Remote | NdarrayOrTensor) -> MetaTensor:
        if isinstance(path, (np.ndarray, torch.Tensor)):
            return self._take(path)
        place = as_place(path)
        with local(place) as file:
            volume = self._volume(place, file)
        verdict = "; ".join(volume.notes) or "ok"
        if volume.notes:
            logger.warning("%s: %s", place, verdict)
        meta = {"filename_or_obj": str(place), "verdict": verdict, "scanner": volume.scanner}
        return placed(torch.from_numpy(volume.hu)[None], volume.affine, meta)

    def _volume(self, place: Place, file: Path) -> Volume:
        try:
            with quiet_pydicom():
                return checked(file, self._read(file), self.tilt)
        except (ScanError, ImportError):
            raise
        except OSError as error:
            raise ScanError(str(place), f"{failure(error)}; check the file and its disk") from None
        except Exception as error:
            raise ScanError(str(place), f"unreadable ({type(error).__name__}); convert or export it again") from None

    def _take(self, volume: NdarrayOrTensor) -> MetaTensor:
        if not isinstance(volume, MetaTensor):
            raise ScanError(
                "volume",
                f"{type(volume).__name__} has no affine, so that its voxel size and orientation are unknown; give "
                "MetaTensor(volume, affine=...), from voxels to RAS mm, or the path of the scan",
            )
        if volume.ndim != 4 or len(volume) != 1 or not volume.numel() or not volume.isfinite().all():
            raise ScanError("volume", f"wanted finite HU (1, X, Y, Z), got shape {tuple(volume.shape)}, or NaN")
        values = to_int16(volume[0].cpu().numpy())
        taken = checked(Path("volume"), Volume(values, volume.affine.cpu().double().numpy()), self.tilt)
        verdict = "; ".join(taken.notes) or "ok"
        out = placed(torch.from_numpy(taken.hu)[None], taken.affine, {"scanner": "", **volume.meta, "verdict": verdict})
        out.applied_operations = list(volume.applied_operations)
        return out

    def _read(self, file: Path) -> Volume:
        name = file.name.lower()
        if not file.exists():
            raise ScanError(file, "no such file or folder; paths in a table are relative to the table")
        if file.is_file() and name.endswith(NIFTI_SUFFIXES):
            return read_nifti(file)
        if file.is_file() and name.endswith(ITK_SUFFIXES):
            return read_itk(file)
        try:
            return self._read_dicom(file)
        except InvalidDicomError:
            raise ScanError(
                file, f"wanted a DICOM series folder, DICOM, NIfTI, {', '.join(ITK_SUFFIXES)}; this is none of them"
            ) from None

    def _read_dicom(self, path: Path) -> Volume:
        found = find_slices(path)
        series, notes = choose_series(found, self.series)
        first = series.slices[0]
        if len(series.slices) == 1:
            if path.is_dir():
                raise ScanError(path, "wanted a series, got a single slice; to read it alone, name the file")
            step = first.normal * _thickness(first.header, notes)
        else:
            step = self._step(path, series)
        stack = np.empty((len(series.slices), *first.shape), np.int16)
        rescales = [self._rescale(one.header) for one in series.slices]
        plain = not first.header.dataset.file_meta.TransferSyntaxUID.is_encapsulated
        with ThreadPoolExecutor(torch.get_num_threads() if plain else 1) as pool:  # decoders catch what C code prints
            notes += chain.from_iterable(pool.map(_read_hu, stack, series.slices, rescales))
        if len(set(rescales)) > 1:
            notes.append("RescaleSlope or RescaleIntercept differs between slices")
        hu = stack.transpose(2, 1, 0)
        if len(series.slices) > 1 and self.uneven == "resample" and not series.is_even():
            largest = float(np.diff(series.along_mm).max())
            hu = evenly_spaced(hu, series.along_mm, series.step_mm)
            notes.append(f"slices up to {largest:.3g} mm apart resampled to {series.step_mm:.3g} mm")
        return Volume(hu, slice_affine(first, step), list(dict.fromkeys(notes)), first.header.scanner())

    def _step(self, path: Path, series: Series) -> NDArray[np.float64]:
        """From one slice to the next, LPS mm."""
        steps = np.diff(series.along_mm)
        if series.is_doubled():
            raise ScanError(path, "two slices at the same position; remove duplicates (two series in one folder?)")
        tolerance = 0.0 if isinstance(self.uneven, str) else self.uneven
        if self.uneven != "resample" and not series.is_even(tolerance):
            raise ScanError(
                path,
                f"slices are {steps.min():.2f} to {steps.max():.2f} mm apart: some are missing; export the whole "
                "series, or read it with uneven='resample'",
            )
        ends = series.origins[-1] - series.origins[0]
        line = np.outer((series.along_mm - series.along_mm[0]) / (series.along_mm[-1] - series.along_mm[0]), ends)
        aside = float(np.linalg.norm(series.origins - series.origins[0] - line, axis=1).max())
        if aside > max(0.2, 0.01 * series.step_mm):
            raise ScanError(path, f"slices are up to {aside:.1f} mm off a straight line; export the series again")
        if self.uneven == "resample":
            return ends * series.step_mm / (series.along_mm[-1] - series.along_mm[0])
        return ends / (len(series.slices) - 1)

    def _rescale(self, header: Header) -> tuple[float, float]:
        if header.element("ModalityLUTSequence") is not None:
            raise header.error("a modality LUT instead of rescale slope and intercept", "convert it to HU first")
        kind = header.text("RescaleType").upper()
        if kind not in ("", "HU"):
            shown = kind if kind in _RESCALE_TYPES else "another text"
            raise header.error(f"RescaleType: wanted HU, got {shown}", "use the reconstruction in HU")
        if self.no_rescale == "hu" and not header.text("RescaleSlope") and not header.text("RescaleIntercept"):
            return 1.0, 0.0
        return header.number("RescaleSlope", 1e-3, 100), header.number("RescaleIntercept", -(2**16), 2**16)


class LoadCTd(EachKeyd):
    """`LoadCT` for dictionaries: each of ``keys`` holds a path or a volume."""

    def __init__(
        self,
        keys: KeysCollection,
        series: str | int = "largest",
        uneven: Literal["error", "resample"] | float = "error",
        tilt: Literal["error", "correct"] = "error",
        no_rescale: Literal["error", "hu"] = "error",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, LoadCT(series, uneven, tilt, no_rescale), allow_missing_keys)


def _read_hu(plane: NDArray[np.int16], one: Slice, rescale: tuple[float, float]) -> list[str]:
    """Read a slice in HU into (rows, columns); returns notes."""
    slope, intercept = rescale
    notes: list[str] = []
    stored = stored_values(one.header, one.frame, one.num_frames, plane)
    padding = _padding(one.header, stored, slope, intercept, notes)
    if slope == 1 and intercept.is_integer() and abs(intercept) < 2**15 and _fits_int16(stored, intercept):
        same_bits = stored.view("<i2") if stored.dtype.str in ("<u2", "<i2") else stored
        np.add(same_bits, np.int16(intercept), out=plane, dtype=np.int16, casting="unsafe")
    else:
        plane[:] = to_int16(stored * slope + intercept)
    if padding is not None:
        plane[padding] = AIR_HU
    return notes


def _fits_int16(stored: NDArray[Any], intercept: float) -> bool:
    return int(stored.min()) + intercept >= -(2**15) and int(stored.max()) + intercept < 2**15


def _thickness(header: Header, notes: list[str]) -> float:
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        thickness = header.number(name, 0, 50, default=0)
        if thickness:
            return thickness
    notes.append("no SliceThickness: 1 mm assumed")
    return 1.0


def _padding(
    header: Header, stored: NDArray[Any], slope: float, intercept: float, notes: list[str]
) -> NDArray[np.bool_] | None:
    """Where pixels are padding; None where there is none, or where the value may be tissue."""
    ends = [header.stored_number(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    low, high = sorted((ends[0], ends[0] if ends[1] is None else ends[1]))
    if low * slope + intercept < _TISSUE_HU[1] and high * slope + intercept > _TISSUE_HU[0]:
        notes.append(f"padding of {low * slope + intercept:g} HU not replaced: it may be tissue")
        return None
    padding = (stored >= low) & (stored <= high)
    return padding if padding.any() else None


def slice_affine(first: Slice, step_lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel (column, row, slice) -> RAS mm (DICOM PS3.3 C.7.6.2.1.1; PixelSpacing is row distance, column distance)."""
    row_mm, column_mm = first.spacing
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.orientation[:3] * column_mm, first.orientation[3:] * row_mm
    affine[:3, 2], affine[:3, 3] = step_lps_mm, first.position
    return LPS_TO_RAS @ affine
