"""Micrometers per pixel, however a file states them."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from unicodedata import normalize
from xml.etree import ElementTree

from monai_pipelines.errors import ScanError

PLAUSIBLE_MPP = (0.1, 2.0)  # 100x with oil immersion to 5x
MAX_ANISOTROPY = 0.01
UNIT_UM = {"centimeter": 10_000.0, "inch": 25_400.0}
OME_UNIT_UM = {"nm": 1e-3, "um": 1.0, "\N{GREEK SMALL LETTER MU}m": 1.0, "mm": 1e3}
WAY_OUT = "set it: knob `slide_mpp` of the chain, or column `mpp` of the table"


def check_mpp(mpp: float) -> float:
    """A caller's resolution in um per pixel.

    Raises:
        ValueError: no scanner has it.
    """
    if not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        raise ValueError(f"mpp must lie in {PLAUSIBLE_MPP[0]}..{PLAUSIBLE_MPP[1]:g} um per pixel, got {mpp}")
    return float(mpp)


def mpp_of(path: str | PathLike[str], properties: Mapping[str, str]) -> float:
    """Micrometers per pixel at level 0, from the scanner's metadata or a TIFF's resolution tags.

    Args:
        path: of the slide, for the error.
        properties: OpenSlide's names: ``openslide.mpp-x``, ``openslide.mpp-y``, else ``tiff.XResolution``,
            ``tiff.YResolution`` in pixels per ``tiff.ResolutionUnit`` ("centimeter" or "inch"); before these the
            OME-XML in ``tiff.ImageDescription``.

    Raises:
        ScanError: no resolution, no plausible one (0.1 to 2), or pixels more than 1 % from square.
    """
    implausible = []
    for x, y, name in (_vendor_mpp(properties), _ome_mpp(properties), _tiff_mpp(properties)):
        if not (x and y):
            continue
        if not all(PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1] for mpp in (x, y)):
            implausible.append(f"{name} of {x:.4g}")
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


def _vendor_mpp(properties: Mapping[str, str]) -> tuple[float, float, str]:
    return _number(properties.get("openslide.mpp-x")), _number(properties.get("openslide.mpp-y")), "mpp"


def _ome_mpp(properties: Mapping[str, str]) -> tuple[float, float, str]:
    """Of the first image; micrometers are OME's default, units other than nm, um and mm are ignored."""
    try:
        root = ElementTree.fromstring(properties.get("tiff.ImageDescription", ""))
    except ElementTree.ParseError:
        return 0.0, 0.0, ""
    attributes = next((element.attrib for element in root.iterfind(".//{*}Pixels")), {})

    def size_um(axis: str) -> float:
        unit = normalize("NFKC", attributes.get(f"PhysicalSize{axis}Unit", "um"))
        return _number(attributes.get(f"PhysicalSize{axis}")) * OME_UNIT_UM.get(unit, 0)

    return size_um("X"), size_um("Y"), "OME's physical size"


def _tiff_mpp(properties: Mapping[str, str]) -> tuple[float, float, str]:
    unit_um = UNIT_UM.get(properties.get("tiff.ResolutionUnit", ""), 0.0)
    x, y = (_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
    return unit_um / x if x else 0.0, unit_um / y if y else 0.0, "TIFF resolution"


def _number(text: str | None) -> float:
    """0 if missing or invalid."""
    try:
        number = float(text or 0)
    except ValueError:
        return 0.0
    return number if 0 < number < float("inf") else 0.0
