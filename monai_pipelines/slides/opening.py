"""Open a slide, or say what is wrong with it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import tifffile
from openslide import OpenSlide, OpenSlideError

from monai_pipelines.errors import ScanError
from monai_pipelines.slides.readers import Backend, drop_reader, open_reader, stamp_of
from monai_pipelines.slides.resolution import check_mpp, mpp_of
from monai_pipelines.slides.slide import Slide

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_slide(path: str | os.PathLike[str], mpp: float | None = None) -> Slide:
    """Open a slide, or say what is wrong with it.

    OpenSlide opens it; a TIFF that OpenSlide refuses (strips, no tiles, a pyramid in SubIFDs) is opened by tifffile.

    Args:
        path: of the file, or of a folder with one DICOM series.
        mpp: um per pixel at level 0, 0.1 to 2, instead of what the file tells.

    Returns:
        what the slide is; the file opens again where it is read.

    Raises:
        ScanError: it is missing, empty, truncated, broken, of another kind, of unknown resolution, or a folder of
            several series; the message has a way out.
        ValueError: an `mpp` that no scanner has.
    """
    given = None if mpp is None else check_mpp(mpp)
    file = Path(path).absolute()
    if file.is_dir():
        file = _first_of_series(file)
    elif not file.is_file():
        raise ScanError(path, "wanted a slide, found no such file")
    elif not file.stat().st_size:
        raise ScanError(path, "wanted a slide, the file is empty; copy it again")
    try:
        slide = _described(str(file), "openslide", given)
    except OpenSlideError as error:
        return _by_tifffile(path, file, given, str(error))
    if open_reader(slide.path, "openslide", slide.stamp).is_part:
        with suppress(ScanError):
            return _by_tifffile(path, file, given, "")
    return slide


def _by_tifffile(path: str | os.PathLike[str], file: Path, mpp: float | None, refusal: str) -> Slide:
    with file.open("rb") as opened:
        if opened.read(4) not in TIFF_STARTS:
            raise ScanError(path, f"wanted a slide that OpenSlide opens, or a TIFF, got neither (OpenSlide: {refusal})")
    try:
        return _described(str(file), "tifffile", mpp)
    except tifffile.TiffFileError as error:
        raise ScanError(path, f"tifffile does not open it ({error}), nor does OpenSlide ({refusal})") from error


def _described(file: str, backend: Backend, mpp: float | None) -> Slide:
    stamp = stamp_of(file)
    drop_reader(file, backend, stamp)  # clocks are coarse: the file may be another one than it was
    reader = open_reader(file, backend, stamp)
    return Slide(
        path=file,
        mpp=mpp or mpp_of(file, reader.properties),
        size=reader.level_sizes[0],
        level_sizes=reader.level_sizes,
        level_downsamples=reader.level_downsamples,
        vendor=reader.properties["openslide.vendor"],
        backend=backend,
        stamp=stamp,
    )


def _first_of_series(folder: Path) -> Path:
    """OpenSlide finds the other files of the series by itself."""
    import pydicom  # takes longer than all the rest

    files = [
        file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".dcm" and OpenSlide.detect_format(file)
    ]
    if not files:
        raise ScanError(folder, "wanted a slide, or a folder of one DICOM series, found no .dcm that OpenSlide opens")
    tag = "SeriesInstanceUID"
    heads = [pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[tag]) for file in files]
    series = {head.get_item(tag).value if tag in head else None for head in heads}  # raw: some are no UID
    if (found := len(series)) > 1:
        raise ScanError(folder, f"wanted one DICOM series, found {found}; give each a folder, or name one file of it")
    return files[0]
