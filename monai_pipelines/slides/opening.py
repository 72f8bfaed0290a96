"""Open a slide with its micrometers per pixel, however the file states them, or say what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import nan
from pathlib import Path
from unicodedata import normalize
from xml.etree import ElementTree

from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure, quiet_libraries
from monai_pipelines.remote import Remote, as_place, local
from monai_pipelines.slides.handles import Backend, drop_reader, open_reader, raise_scan_errors, stamp_of
from monai_pipelines.slides.slide import Slide
from monai_pipelines.walk import is_clutter

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PLAUSIBLE_MPP = (0.1, 2.0)  # 100x with oil immersion to 5x
MAX_ANISOTROPY = 0.01
UNIT_UM = {"centimeter": 10_000.0, "inch": 25_400.0}
# OME's default is um; units other than these are ignored
OME_UNIT_UM = {"nm": 1e-3, "um": 1.0, "\N{GREEK SMALL LETTER MU}m": 1.0, "mm": 1e3}
WAY_OUT = "set it: knob `slide_mpp` of the chain, or column `mpp` of the table"


def open_slide(path: str | os.PathLike[str] | Remote, mpp: float | None = None) -> Slide:
    """Open a slide, or say what is wrong with it.

    OpenSlide opens it; tifffile opens TIFFs that OpenSlide refuses (strips, no tiles, a pyramid in SubIFDs).

    Args:
        path: of the file, or of a folder with one DICOM series; or a URL of it. OpenSlide reads local files only: a
            slide in a store is copied to the scratch folder, see `monai_pipelines.remote.local`.
        mpp: um per pixel at level 0, 0.1 to 2, instead of the file's.

    Returns:
        the slide, which opens its file when read.

    Raises:
        ScanError: it is missing, empty, truncated, broken, of another kind, of unknown resolution, or a folder of
            several series; the message says what to do.
        ValueError: an `mpp` that no scanner has.
    """
    from openslide import OpenSlideError

    mpp = None if mpp is None else check_mpp(mpp)
    place = as_place(path)
    with local(place) as file:
        if file.is_dir():
            first = _first_of_series(file)
            place, file = place / first.name, first
        elif not file.is_file():
            raise ScanError(place, "wanted a slide, found no such file")
        elif not file.stat().st_size:
            raise ScanError(place, "wanted a slide, the file is empty; copy it again")
        named = place if isinstance(place, Remote) else str(place.absolute())
        try:
            slide = _describe(named, "openslide", mpp)
        except OpenSlideError as error:
            return _open_by_tifffile(named, file, mpp, failure(error))
        if open_reader(slide.path, "openslide", slide.stamp).is_part:
            with suppress(ScanError):
                return _open_by_tifffile(named, file, mpp, "")
        return slide


def _open_by_tifffile(path: str | Remote, file: Path, mpp: float | None, refusal: str) -> Slide:
    with file.open("rb") as opened:
        if opened.read(4) not in TIFF_STARTS:
            raise ScanError(
                path,
                f"wanted a slide that OpenSlide opens, or a TIFF, got neither (OpenSlide: {refusal}); name another "
                "file, or copy it again",
            )
    from tifffile import TiffFileError

    try:
        return _describe(path, "tifffile", mpp)
    except TiffFileError as error:
        raise ScanError(
            path, f"tifffile does not open it ({failure(error)}), nor does OpenSlide ({refusal}); copy it again"
        ) from None


def _describe(file: str | Remote, backend: Backend, mpp: float | None) -> Slide:
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
    import pydicom
    from openslide import OpenSlide

    files = [
        file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() == ".dcm" and not is_clutter(file.name) and OpenSlide.detect_format(file)
    ]
    if not files:
        raise ScanError(folder, "wanted a slide, or a folder of one DICOM series, found no .dcm that OpenSlide opens")
    tag = "SeriesInstanceUID"
    with quiet_libraries(), raise_scan_errors(str(folder)):
        heads = [pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[tag]) for file in files]
        series = {head.get_item(tag).value if tag in head else None for head in heads}  # raw: some are not UIDs
    if len(series) > 1:
        raise ScanError(folder, f"wanted one DICOM series, found {len(series)}; give each a folder, or name one file")
    return files[0]


def check_mpp(mpp: float, name: str = "mpp") -> float:
    """A caller's resolution in um per pixel, called `name` in the error.

    Raises:
        ValueError: no scanner has it.
    """
    if not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        raise ValueError(f"{name} must lie in {PLAUSIBLE_MPP[0]}..{PLAUSIBLE_MPP[1]:g} um per pixel, got {mpp}")
    return float(mpp)


def mpp_of(path: str | os.PathLike[str] | Remote, properties: Mapping[str, str]) -> float:
    """Micrometers per pixel at level 0, from the scanner's metadata or a TIFF's resolution tags.

    Where several are stated, the first that is plausible counts.

    Args:
        path: of the slide, for the error.
        properties: OpenSlide's names: the OME-XML in ``tiff.ImageDescription``, ``openslide.mpp-x`` and
            ``openslide.mpp-y``, ``tiff.XResolution`` and ``tiff.YResolution`` in pixels per ``tiff.ResolutionUnit``
            ("centimeter" or "inch").

    Raises:
        ScanError: no resolution, no plausible one (0.1 to 2), or pixels more than 1 % from square.
    """
    implausible = []
    for name, texts, (x, y), unit in _stated(properties):
        if not any(texts):
            continue
        if not all(PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1] for mpp in (x, y)):
            implausible.append(f"{name} of {' x '.join(dict.fromkeys(map(_shown, texts)))}{unit}")
            continue
        if abs(x - y) > MAX_ANISOTROPY * max(x, y):
            raise ScanError(
                path,
                f"wanted square pixels, got {x:.4g} x {y:.4g} um ({name}); make them square, or where the file is "
                f"wrong {WAY_OUT}",
            )
        return (x + y) / 2
    raise ScanError(
        path,
        f"wanted a resolution of {PLAUSIBLE_MPP[0]} to {PLAUSIBLE_MPP[1]:g} um per pixel, got "
        f"{' and '.join(implausible) or 'none'}; {WAY_OUT}",
    )


def _stated(properties: Mapping[str, str]) -> Iterator[tuple[str, list[str], list[float], str]]:
    """What states a resolution, its texts for x and y ("" if missing), um per pixel (NaN if invalid), and its unit."""
    attributes: Mapping[str, str] = {}  # of OME's first image
    with suppress(ElementTree.ParseError):
        root = ElementTree.fromstring(properties.get("tiff.ImageDescription", ""))
        attributes = next((element.attrib for element in root.iterfind(".//{*}Pixels")), {})
    texts = [attributes.get(f"PhysicalSize{axis}", "") for axis in "XY"]
    units = [normalize("NFKC", attributes.get(f"PhysicalSize{axis}Unit", "um")) for axis in "XY"]
    sizes = [_number(text) * OME_UNIT_UM.get(unit, nan) for text, unit in zip(texts, units, strict=True)]
    yield "OME's PhysicalSizeX", texts, sizes, f" {units[0]}"
    texts = [properties.get(f"openslide.mpp-{axis}", "") for axis in "xy"]
    yield "mpp", texts, [_number(text) for text in texts], ""
    texts = [properties.get(f"tiff.{axis}Resolution", "") for axis in "XY"]
    unit = properties.get("tiff.ResolutionUnit", "")
    sizes = [UNIT_UM.get(unit, nan) / (_number(text) or nan) for text in texts]
    yield "TIFF XResolution", texts, sizes, f" per {unit or 'unknown unit'}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def _shown(text: str) -> str:
    try:
        return f"{float(text):g}"
    except ValueError:
        return repr(text[:20]) if text else "nothing"
