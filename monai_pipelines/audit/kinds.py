"""What a source holds - 2D images, CT scans, slides - and how each is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pydicom.errors import InvalidDicomError

from monai_pipelines.audit.readings import Reading, read_image, read_scan, read_slide
from monai_pipelines.chains import did_you_mean
from monai_pipelines.data import Listing, find_scans, list_images
from monai_pipelines.data.folder import IMAGES
from monai_pipelines.data.rows import read_rows
from monai_pipelines.data.slide_table import SLIDES, find_slides, list_slides
from monai_pipelines.data.split import Item
from monai_pipelines.data.table import VOLUMES, list_table
from monai_pipelines.errors import ScanError
from monai_pipelines.remote import Place, Source, as_place, files_below, local
from monai_pipelines.slides import open_slide
from monai_pipelines.transforms import LoadCT
from monai_pipelines.transforms.dicom import quiet_pydicom, read_header

KindName = Literal["image", "scan", "slide"]

UNLABELED = ("all",)  # classes of a listing without labels
_SAMPLE = 50  # files that are looked at
_TIFF = (".tif", ".tiff")
_DICOM = (".dcm", ".dicom")


@dataclass(frozen=True)
class Kind:
    """A kind of input: how it is read, and the words for it.

    Attributes:
        name: image, scan or slide.
        axes: of `Reading.size`.
        unit: of `Reading.spacing`.
        values: what its values are.
        read: an item of a datalist.
    """

    name: KindName
    axes: tuple[str, ...]
    unit: str
    values: str
    read: Callable[[Mapping[str, Any]], Reading]


def kind_named(name: KindName, **load: Any) -> Kind:
    """A kind by its name.

    Args:
        name: image, scan or slide.
        load: arguments of `LoadCT`, for scans.

    Raises:
        ValueError: arguments that `LoadCT` does not have, or for another kind.
    """
    known = list(signature(LoadCT).parameters) if name == "scan" else []
    for argument in load:
        if argument not in known:
            reader = "LoadCT" if known else f"the reader of {name}s"
            raise ValueError(f"{reader} has no argument {argument!r}{did_you_mean(argument, known)}")
    if name == "scan":
        return Kind("scan", ("x", "y", "z"), "mm", "HU", partial(read_scan, load=LoadCT(**load)))
    if name == "image":
        return Kind("image", ("height", "width"), "mm", "gray levels", read_image)
    return Kind("slide", ("width", "height"), "um", "gray levels", read_slide)


def list_source(
    source: Source,
    kind: KindName | None = None,
    classes: Sequence[str] | None = None,
    patient_pattern: str | None = None,
    multilabel: bool = False,
    extract_dir: str | PathLike[str] | None = None,
) -> tuple[KindName, Listing]:
    """The items of a source and their kind.

    A table with the column ``label`` and 2D images in class folders are labeled; the class of anything else is
    `UNLABELED`.

    Args:
        source: a table, a folder, or their URL, or a zip of 2D images.
        kind: None: that of most items, by their names and headers.
        classes, patient_pattern, multilabel, extract_dir: of `list_images`.

    Raises:
        FileNotFoundError: no such file or folder.
        CohortError: nothing to audit in it.
    """
    path = as_place(source)
    if path.is_dir() and (path / "table.csv").is_file():
        path = path / "table.csv"
    if path.suffix.lower() == ".csv" and path.is_file():
        return _list_table(path, kind, classes, patient_pattern, multilabel)
    if path.is_dir():
        kind = kind or _most(_kind_of(file, ct="scan") for file in _some(files_below(path)))
    if kind in (None, "image"):
        return "image", list_images(source, classes, patient_pattern, multilabel, extract_dir)
    return kind, _unlabeled(source, find_scans(path) if kind == "scan" else find_slides(path))


def _list_table(
    path: Place,
    kind: KindName | None,
    classes: Sequence[str] | None,
    patient_pattern: str | None,
    multilabel: bool,
) -> tuple[KindName, Listing]:
    labeled = "label" in read_rows(path, needed=("image",))[0]
    listing = list_table(path, classes, multilabel) if labeled else _unlabeled(path, find_scans(path))
    kind = kind or _most(_kind_of_item(as_place(item["image"])) for item in _some(listing.items))
    if labeled and kind == "image" and patient_pattern is not None:
        return kind, list_images(path, classes, patient_pattern, multilabel)
    if kind == "slide":
        return kind, list_slides(path, classes) if labeled else _unlabeled(path, find_slides(path))
    return kind, listing


def _unlabeled(source: Source, items: Sequence[Item]) -> Listing:
    listed = [{**item, "label": 0, "patient": item["name"]} for item in items]
    return Listing(source, listed, UNLABELED, [])


def _some(values: Sequence[Any]) -> Sequence[Any]:
    return values[:: max(1, len(values) // _SAMPLE)]


def _most(kinds: Iterable[KindName | None]) -> KindName:
    found = Counter(kind for kind in kinds if kind)
    return found.most_common(1)[0][0] if found else "image"


def _kind_of_item(place: Place) -> KindName | None:
    """A folder is a series of slices; a file with one slice of a CT is a 2D image."""
    if not place.is_dir():
        return _kind_of(place, ct="image")
    return _most(_kind_of(file, ct="scan") for file in files_below(place)[:3])


def _kind_of(place: Place, ct: KindName) -> KindName | None:
    """By the name of the file, or by its header; None where both say nothing."""
    if place.name.lower().endswith(VOLUMES):
        return "scan"
    if not place.is_file():
        return None
    with local(place) as file:
        return _kind_by_header(file, ct)


def _kind_by_header(file: Path, ct: KindName) -> KindName | None:
    name = file.name.lower()
    if name.endswith(_TIFF):
        return "slide" if _is_tiled(file) else "image"
    if name.endswith(SLIDES) and not name.endswith(_DICOM):
        return "slide"
    if name.endswith(IMAGES) and not name.endswith(_DICOM):
        return "image"
    try:
        with quiet_pydicom():
            header = read_header(file, ("Modality", "NumberOfFrames"))
            modality, frames = header.text("Modality"), header.integer("NumberOfFrames", 1, 10**6, default=1)
    except (ScanError, InvalidDicomError):
        return None
    if modality == "SM":
        return "slide"
    if modality == "CT":
        return "scan" if frames > 1 else ct
    return "image"


def _is_tiled(file: Path) -> bool:
    try:
        return open_slide(file, mpp=1.0).backend == "openslide"
    except ScanError:
        return False
