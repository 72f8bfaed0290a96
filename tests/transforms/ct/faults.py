"""Faults of CT data, each made from one healthy phantom, and what `LoadCT` and MONAI make of them.

``python -m tests.transforms.ct.faults > bundles/lung_ct_classification/docs/faults.md`` writes the documentation.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import monai
import nibabel as nib
import numpy as np
from monai.transforms import LoadImage
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms import LoadCT
from tests.transforms.ct.spoiling import (
    AFFINE,
    HU,
    MARKER,
    SHAPE,
    Spoil,
    beside,
    big_endian,
    blank_uids,
    broken_links,
    change_to,
    companions,
    compress,
    copied,
    cut,
    cut_stream,
    doubled,
    drop,
    edit,
    eight_bits,
    gzipped,
    jitter,
    left_justified,
    links,
    loop,
    missing,
    nested,
    not_utf8,
    overlay_bits,
    pad,
    put,
    rounded,
    same_uid,
    second_series,
    signed_12_bits,
    stored_hu,
    tilted,
    without_meta,
    without_syntax,
    write_healthy,
)
from tests.transforms.ct.spoiling_formats import codes, disagreeing, enhanced, flip_bit, itk, nifti, set, sheared, unit


@dataclass(frozen=True)
class Fault:
    """A fault and its outcome.

    Args:
        name: as in the documentation.
        spoil: changes the healthy series in a folder; returns the path to be read, if it is another one.
        outcome: "equal" to the healthy volume, "repaired" (close to it), or the message (regular expression).
        options: of `LoadCT`.
        verdict: regular expression.
    """

    name: str
    spoil: Spoil
    outcome: str
    options: dict[str, Any] = field(default_factory=dict)
    verdict: str = "ok"
    kind: Literal["series", "enhanced", "NIfTI", "NRRD, MetaImage"] = "series"


NUMBER = "wanted a number from"
FAULTS = [
    Fault("nothing", lambda folder: None, "equal"),
    # rescale
    Fault("RescaleIntercept missing in one slice", drop("RescaleIntercept", only=9), f"RescaleIntercept: {NUMBER}"),
    Fault("rescale missing in all slices", drop("RescaleIntercept", "RescaleSlope"), "RescaleSlope: .* got none"),
    Fault("rescale missing, stored values in HU", edit(stored_hu), "equal", {"no_rescale": "hu"}),
    Fault("RescaleSlope NaN", put("RescaleSlope", b"NaN ", 9), "RescaleSlope: .* got 'NaN'"),
    Fault("RescaleSlope infinite", put("RescaleSlope", b"1e999 ", 9), "RescaleSlope: .* got inf"),
    Fault("RescaleSlope 0", change_to("RescaleSlope", 0), "RescaleSlope: .* got 0"),
    Fault("RescaleSlope negative", change_to("RescaleSlope", -1), "RescaleSlope: .* got -1"),
    Fault("RescaleSlope huge", change_to("RescaleSlope", 1e9), "RescaleSlope: .* got 1e"),
    Fault("RescaleSlope empty", put("RescaleSlope", b"", 9), "RescaleSlope: .* got an empty value"),
    Fault("RescaleSlope with a comma", put("RescaleSlope", b"1,0 ", 9), "RescaleSlope: .* got '1,0'"),
    Fault("RescaleSlope of two values", put("RescaleSlope", b"1\\1 ", 9), "RescaleSlope: .* got 1, 1"),
    Fault("RescaleIntercept is a name", put("RescaleIntercept", MARKER.encode()), "RescaleIntercept: .* got text"),
    Fault("RescaleType US", change_to("RescaleType", "US"), "RescaleType: wanted HU, got US"),
    Fault("modality LUT", change_to("ModalityLUTSequence", [Dataset()]), "a modality LUT"),
    # place
    Fault("position missing", drop("ImagePositionPatient", only=3), "ImagePositionPatient: .* got none"),
    Fault(
        "position NaN", put("ImagePositionPatient", b"1\\2\\nan ", 3), r"ImagePositionPatient: .* got '1\\\\2\\\\nan'"
    ),
    Fault("position of two values", put("ImagePositionPatient", b"1\\2 ", 3), "ImagePositionPatient: .* got 1, 2"),
    Fault(
        "position a kilometre away", put("ImagePositionPatient", b"1e6\\0\\0 ", 3), "ImagePositionPatient: .* got 1e"
    ),
    Fault("positions rounded to 0.1 mm", edit(rounded), "equal"),
    Fault("orientation zero", change_to("ImageOrientationPatient", [0] * 6), "wanted two directions at right angles"),
    Fault(
        "orientation not at right angles", change_to("ImageOrientationPatient", [1, 0, 0, 0.5, 0.8, 0]), "right angles"
    ),
    Fault("orientation jitters in the fifth digit", jitter, "equal"),
    Fault("PixelSpacing 0", change_to("PixelSpacing", [0, 0]), "PixelSpacing: .* got 0, 0"),
    Fault("PixelSpacing negative", change_to("PixelSpacing", [-2, 2]), "PixelSpacing: .* got -2, 2"),
    Fault("PixelSpacing of one value", put("PixelSpacing", b"2 "), "PixelSpacing: .* got 2"),
    Fault("PixelSpacing in micrometres", change_to("PixelSpacing", [2000, 2000]), "PixelSpacing: .* got 2000"),
    Fault("slices in one place", doubled, "two slices at the same position"),
    Fault("a slice copied", copied, "equal", verdict="duplicate files left out: 1"),
    Fault("a slice missing", missing, "5.00 to 10.00 mm apart: some are missing"),
    Fault(
        "a slice missing, resampled", missing, "repaired", {"uneven": "resample"}, "up to 10 mm apart resampled to 5"
    ),
    Fault("gantry tilt", tilted, r"gantry tilt of 12\.0 degrees"),
    Fault("gantry tilt, corrected", tilted, "repaired", {"tilt": "correct"}, r"gantry tilt of 12\.0 degrees corrected"),
    # pixels
    Fault("overlay in the unused bits", edit(overlay_bits), "equal"),
    Fault("signed, 12 bits", edit(signed_12_bits), "equal"),
    Fault("12 bits, HighBit 15", edit(left_justified), "equal"),
    Fault("8 bits", edit(eight_bits), "repaired"),
    Fault("padding", edit(pad), "padded"),
    Fault(
        "padding value within tissue",
        edit(lambda d: d.add_new("PixelPaddingValue", "US", 1024)),
        "equal",
        verdict="padding of 0 HU not",
    ),
    Fault(
        "pixel data longer than Rows x Columns", change_to("Rows", 14), "PixelData holds 1792 bytes, Rows x Columns are"
    ),
    Fault(
        "pixel data shorter than Rows x Columns",
        change_to("Rows", 56),
        "truncated: wanted 3584 bytes of pixels, got 1792",
    ),
    Fault("Columns 0", change_to("Columns", 0), "Columns: wanted a number from 1"),
    Fault("BitsStored 20 of 16", change_to("BitsStored", 20), "BitsStored: wanted a number from 1 to 16, got 20"),
    Fault("no pixel data", drop("PixelData", only=3), "no PixelData: truncated, or not a CT slice"),
    Fault("three values per pixel", change_to("SamplesPerPixel", 3, 3), "a color image"),
    Fault("big endian", big_endian, "equal"),
    Fault("implicit VR, no file meta", without_meta, "equal"),
    Fault("no transfer syntax", without_syntax, "equal"),
    Fault(
        "deflated", edit(lambda d: setattr(d.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian)), "equal"
    ),
    Fault("RLE", compress(RLELossless), "equal"),
    Fault("JPEG lossless", compress(JPEGLosslessSV1, "JPEG"), "equal"),
    Fault("JPEG 2000", compress(JPEG2000Lossless, "JPEG2000"), "equal"),
    Fault("RLE, a stream cut", cut_stream, "cannot be decoded|truncated"),
    # files
    Fault("gzipped slices", gzipped, "equal"),
    Fault("a file cut in its header", cut(500), "no Modality .truncated"),
    Fault("a file cut in its pixels", cut(-500), "truncated: wanted 1792 bytes of pixels, got 1292"),
    Fault("an empty file", lambda folder: (folder / "IM9999").touch(), "not DICOM"),
    Fault("a file that is not DICOM", lambda folder: (folder / "IM9999").write_bytes(bytes(500)) and None, "not DICOM"),
    Fault("DICOMDIR, README, PDF, thumbnails, hidden files", companions, "equal"),
    Fault("links to the slices", links, "equal"),
    Fault("broken links", broken_links, "broken links: 4, such as IM"),
    Fault("a link to the folder itself", loop, "equal"),
    Fault("slices in folders below", nested, "equal"),
    Fault("compressed, names not in UTF-8", not_utf8, "equal", verdict="file names that are not UTF-8: 14"),
    # several series
    Fault("a scout beside", beside(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "equal"),
    Fault("a capture beside", beside(SOPClassUID=SecondaryCaptureImageStorage), "equal"),
    Fault("a dose report beside", beside(Modality="SR", PixelData=None, Rows=None), "equal"),
    Fault("an MR image beside", beside(Modality="MR"), "equal"),
    Fault("an MR image among the slices", change_to("Modality", "MR", 3), "wanted a CT slice, got Modality MR"),
    Fault("another matrix in one slice", change_to("Columns", 16, 3), "2 different Rows x Columns"),
    Fault("two series", second_series(), "equal", verdict="series 1 .14 slices.* chosen, not series 7 .5 slices"),
    Fault("two series, policy error", second_series(), "2 series: series 1 .*; series 7", {"series": "error"}),
    Fault("two series, by number", second_series(), "equal", {"series": 1}, "series 1 .* chosen"),
    Fault("two series, by description", second_series(), "equal", {"series": "synthetic"}, "series 1 .* chosen"),
    Fault("two series, no match", second_series(), "no series fits 'brain'; there are: series 1", {"series": "brain"}),
    Fault(
        "two series, one UID, other matrix", same_uid(Rows=14, PixelData=bytes(14 * 32 * 2)), "equal", verdict="chosen"
    ),
    Fault("two series, one UID, other kernel", same_uid(ConvolutionKernel="SHARP"), "equal", verdict="chosen"),
    Fault("two series, no UID", blank_uids, "equal", verdict="chosen"),
    Fault("two patients", second_series(PatientID="another"), "scans of several patients; name the folder of one"),
    # enhanced
    Fault("frames in order", enhanced(), "equal", kind="enhanced"),
    Fault("frames scrambled", enhanced([3, 0, 1, 2, *range(13, 3, -1)]), "equal", kind="enhanced"),
    Fault("a frame missing", enhanced([i for i in range(14) if i != 6]), "some are missing", kind="enhanced"),
    Fault("a frame doubled", enhanced([*range(14), 6]), "two slices at the same position", kind="enhanced"),
    Fault(
        "two stacks",
        enhanced([*range(14), *range(14)], stacks=True),
        "equal",
        verdict="StackID 1 .* not series 1, StackID 2",
        kind="enhanced",
    ),
    Fault("two phases without a distinct attribute", enhanced([*range(14)] * 2), "same position", kind="enhanced"),
    Fault(
        "rescale of each frame",
        enhanced(per_frame_rescale=True),
        "equal",
        kind="enhanced",
        verdict="RescaleIntercept differs between",
    ),
    Fault("tilted frames", enhanced(shear=0.2), r"gantry tilt of 11\.3 degrees", kind="enhanced"),
    Fault("frames without positions", enhanced(positions=False), "ImagePositionPatient: .* got none", kind="enhanced"),
    Fault("a multi-frame capture", enhanced(frames=False), "a capture, not a volume", kind="enhanced"),
    Fault("RLE", enhanced(syntax=RLELossless), "equal", kind="enhanced"),
    # NIfTI
    Fault("nothing", nifti(), "equal", kind="NIfTI"),
    Fault("metres", nifti(unit(1, 1e-3)), "equal", verdict="unit meter converted", kind="NIfTI"),
    Fault("micrometres", nifti(unit(3, 1e3)), "equal", verdict="unit micron converted", kind="NIfTI"),
    Fault("metres that claim to be mm", nifti(unit(2, 1e-3)), "voxels of 0.002 x 0.002 x 0.005 mm", kind="NIfTI"),
    Fault("no sform, no qform", nifti(codes(0, 0)), "other place", verdict="no sform or qform", kind="NIfTI"),
    Fault("qform only", nifti(codes(0, 1)), "equal", kind="NIfTI"),
    Fault("sform and qform disagree", nifti(disagreeing), "disagree by up to 40 mm", kind="NIfTI"),
    Fault("NaN in the sform", nifti(set("srow_x", np.nan, 3)), "NaN or infinite numbers in its affine", kind="NIfTI"),
    Fault("sheared sform", nifti(sheared), "rows and columns are not at right angles", kind="NIfTI"),
    Fault("trailing axes of one", nifti(values=lambda hu: hu[..., None, None]), "equal", kind="NIfTI"),
    Fault("4D", nifti(values=lambda hu: np.stack([hu, hu], -1)), "wanted one volume", kind="NIfTI"),
    Fault("unknown data type", nifti(set("datatype", 999)), r"unreadable NIfTI \(HeaderDataError\)", kind="NIfTI"),
    Fault("scl_slope NaN", nifti(set("scl_slope", np.nan)), "equal", kind="NIfTI"),
    Fault("scl_slope infinite", nifti(set("scl_slope", np.inf)), "scl_slope or scl_inter is infinite", kind="NIfTI"),
    Fault("a flipped bit in .nii.gz", nifti(name="a.nii.gz", damage=flip_bit), "unreadable NIfTI", kind="NIfTI"),
    Fault(
        "the end of .nii.gz missing",
        nifti(name="a.nii.gz", damage=lambda raw: raw.__delitem__(slice(-9, None))),
        "truncated",
        kind="NIfTI",
    ),
    # NRRD, MetaImage
    Fault("nothing", itk("a.mha"), "equal", kind="NRRD, MetaImage"),
    Fault(
        "data file missing",
        itk("a.mhd", lambda text: text.replace(b"a.raw", b"b.raw")),
        "unreadable",
        kind="NRRD, MetaImage",
    ),
    Fault(
        "NaN direction", itk("a.nrrd", lambda text: text.replace(b"(2,0,0)", b"(nan,0,0)")), ".", kind="NRRD, MetaImage"
    ),
    Fault(
        "spacing 0",
        itk("a.mha", lambda text: text.replace(b"ElementSpacing = 2 2 5", b"ElementSpacing = 0 2 5")),
        ".",
        kind="NRRD, MetaImage",
    ),
]


# ---- documentation

DOCUMENT = Path(__file__).parents[3] / "bundles" / "lung_ct_classification" / "docs" / "faults.md"
HEAD = """# Faults of CT data

One healthy phantom series ({shape[0]} x {shape[1]} x {shape[2]} voxels, unsigned, intercept -1024) is spoiled in each
of these ways. "equal" is the healthy volume, voxel by voxel, at the same place; "repaired" is close to it. Beside it,
what `monai.transforms.LoadImage` of MONAI {monai} does: a volume that is not equal comes without an error.
Written by `python -m tests.transforms.ct.faults`; the tests hold the second column.
"""


def our_outcome(fault: Fault, path: Path) -> str:
    """What `LoadCT` does, without the path."""
    try:
        verdict = str(LoadCT(**fault.options)(path).meta["verdict"])
    except ScanError as error:
        return f"error: {error.reason}"
    outcome = {"padded": "equal, padding is air", "other place": "equal voxels"}.get(fault.outcome, fault.outcome)
    return outcome if verdict == "ok" else f"{outcome}; {verdict}"


def monais_outcome(path: Path) -> str:
    """What `LoadImage` does."""
    try:
        volume = LoadImage(image_only=True, ensure_channel_first=True)(path)
    except BaseException as error:
        return f"{type(error).__name__}"
    hu = np.asarray(volume[0], float)
    if tuple(volume.shape) != (1, *SHAPE):
        return f"a volume of shape {' x '.join(map(str, volume.shape))}"
    spacing = np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0)
    if not np.allclose(spacing, [2, 2, 5], atol=0.01):
        return f"voxels of {' x '.join(f'{v:.3g}' for v in spacing)} mm"
    flips = [np.abs(np.flip(hu, axes) - HU) for axes in ((), (0, 1), (2,), (0, 1, 2))]
    wrong = min(flips, key=lambda difference: float((difference > 0.5).mean()))
    bad = ~(wrong <= 0.5)
    if bad.any():
        return f"{bad.mean():.0%} of the voxels wrong, by up to {wrong.max():.0f} HU"
    corners = np.array(list(itertools.product(*((0, size - 1) for size in SHAPE))))
    there, here = (np.sort(nib.affines.apply_affine(a, corners), axis=0) for a in (np.asarray(volume.affine), AFFINE))
    return "equal" if np.allclose(there, here, atol=0.1) else "equal voxels at another place"


def write_document() -> None:
    """To standard output."""
    print(HEAD.format(shape=SHAPE, monai=monai.__version__))
    print("| kind | fault | LoadCT | LoadImage |\n|---|---|---|---|")
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            path = write_healthy(Path(folder) / "scan")
            path = fault.spoil(path) or path
            row = (fault.kind, option_text(fault), our_outcome(fault, path), monais_outcome(path))
        print("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |")


def option_text(fault: Fault) -> str:
    """The fault's name and the options that `LoadCT` gets."""
    return fault.name + "".join(f" (`{name}={value!r}`)" for name, value in fault.options.items())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    write_document()
