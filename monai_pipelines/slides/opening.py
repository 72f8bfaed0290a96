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

    OpenSlide opens it; tifffile opens TIFFs that OpenSlide refuses (strips, no tiles, a pyramid in SubIFDs).

    Args:
        path: of the file, or of a folder with one DICOM series.
        mpp: um per pixel at level 0, 0.1 to 2, instead of the file's.

    Returns:
        the slide, which opens its file when read.

    Raises:
        ScanError: it is missing, empty, truncated, broken, of another kind, of unknown resolution, or a folder of
            several series; the message says what to do.
        ValueError: an `mpp` that no scanner has.
    """
    mpp = None if mpp is None else check_mpp(mpp)
    file = Path(path).absolute()
    if file.is_dir():
        file = _first_of_series(file)
    elif not file.is_file():
        raise ScanError(path, "wanted a slide, found no such file")
    elif not file.stat().st_size:
        raise ScanError(path, "wanted a slide, the file is empty; copy it again")
    try:
        slide = _describe(str(file), "openslide", mpp)
    except OpenSlideError as error:
        return _open_by_tifffile(path, file, mpp, str(error))
    if open_reader(slide.path, "openslide", slide.stamp).is_part:
        with suppress(ScanError):
            return _open_by_tifffile(path, file, mpp, "")
    return slide


def _open_by_tifffile(path: str | os.PathLike[str], file: Path, mpp: float | None, refusal: str) -> Slide:
    with file.open("rb") as opened:
        if opened.read(4) not in TIFF_STARTS:
            raise ScanError(path, f"wanted a slide that OpenSlide opens, or a TIFF, got neither (OpenSlide: {refusal})")
    try:
        return _describe(str(file), "tifffile", mpp)
    except tifffile.TiffFileError as error:
        raise ScanError(path, f"tifffile does not open it ({error}), nor does OpenSlide ({refusal})") from error


def _describe(file: str, backend: Backend, mpp: float | None) -> Slide:
    stamp = stamp_of(file)
    drop_reader(file, backend, stamp)  # clocks are coarse: the file may have been replaced
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
    """The first file; OpenSlide finds the others."""
    import pydicom  # slow to import

    files = [
        file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".dcm" and OpenSlide.detect_format(file)
    ]
    if not files:
        raise ScanError(folder, "wanted a slide, or a folder of one DICOM series, found no .dcm that OpenSlide opens")
    tag = "SeriesInstanceUID"
    heads = [pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[tag]) for file in files]
    series = {head.get_item(tag).value if tag in head else None for head in heads}  # raw: some are not UIDs
    if len(series) > 1:
        raise ScanError(folder, f"wanted one DICOM series, found {len(series)}; give each a folder, or name one file")
    return files[0]
