"""Tables and folders of whole slides."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from monai_pipelines.data.split import Cohort, Item, Listing, split_sources
from monai_pipelines.data.table import as_image, find_inputs, list_table, table_in
from monai_pipelines.errors import CohortError
from monai_pipelines.remote import Place, Source, as_place, entry, file_stats, files_below
from monai_pipelines.slides.opening import PLAUSIBLE_MPP, check_mpp

SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm")


def read_slides(
    table: Source | None,
    classes: Sequence[str] | None = None,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    features_dir: Source | None = None,
    test_source: Source | None = None,
    rename: Mapping[str, str] | None = None,
) -> Cohort:
    """Read a table of slides with one label each and split it by patient, as `read_cohort` does.

    Two more columns are optional: ``mpp``, um per pixel of level 0 where the slide's is missing or wrong, and
    ``annotation``, a GeoJSON file relative to the table.

    Args:
        table, classes, fractions, seed, test_source, rename: of `read_cohort`.
        features_dir: folder of feature files (`extract_features`); a slide with features may be missing.

    Raises:
        CohortError: lists all problems at once: those of `read_cohort`, a ``mpp`` that is not a number from 0.1 to 2,
            a missing annotation.
    """

    def listed(source: Source, external: bool) -> Listing:
        return list_slides(table_in(source), classes, features_dir, rename)

    return split_sources(listed, table, test_source, fractions, seed)


def list_slides(
    table: Source,
    classes: Sequence[str] | None = None,
    features_dir: Source | None = None,
    rename: Mapping[str, str] | None = None,
) -> Listing:
    """The slides of a table, not yet split, with all its problems; the arguments are those of `read_slides`."""

    def has_features(name: str) -> bool:
        return features_dir is not None and feature_file(features_dir, name).is_file()

    listing = list_table(table, classes, is_optional=has_features, rename=rename)
    problems = list(listing.problems)
    items = [_with_annotation(_with_mpp(item, problems), as_place(table).parent, problems) for item in listing.items]
    return replace(listing, items=items, problems=problems)


def _with_annotation(item: Item, folder: Place, problems: list[str]) -> Item:
    """The item with ``annotation`` as a path, or without."""
    annotation = item.pop("annotation", "").strip()
    if annotation:
        place = entry(folder, annotation)
        item["annotation"] = as_image(place)
        if not place.is_file():
            problems.append(f"{item['name']}: annotation {place.name}: no such file")
    return item


def _with_mpp(item: Item, problems: list[str]) -> Item:
    """The item with ``mpp`` as a number, or without."""
    item = dict(item)
    mpp = item.pop("mpp", "").strip()
    if mpp:
        try:
            item["mpp"] = check_mpp(float(mpp))
        except ValueError:
            wanted = f"a number of um per pixel, {PLAUSIBLE_MPP[0]} to {PLAUSIBLE_MPP[1]:g}, or nothing"
            problems.append(f"{item['name']}: mpp wants {wanted}, got {mpp!r}")
    return item


def find_slides(source: Source) -> list[Item]:
    """Slides to be classified: a CSV table's ``image``, all slides below a folder, or one; see `find_inputs`.

    In a folder every file with the suffix of a slide is one (`SLIDES`), broken links among them, and every folder that
    directly holds .dcm files; other links are followed. A table may have the column ``mpp``, which becomes a number.

    Raises:
        CohortError: a ``mpp`` that is not a number from 0.1 to 2.
    """
    problems: list[str] = []
    items = find_inputs(source, "slide", ", ".join(SLIDES), _list_slides, columns=("mpp",))
    items = [_with_mpp(item, problems) for item in items]
    if problems:
        raise CohortError(source, problems)
    return items


def _list_slides(folder: Place) -> list[Any]:
    files: list[Any] = [file for file in files_below(folder) if file.suffix.lower() in SLIDES]
    return sorted({file.parent if file.suffix.lower() == ".dcm" else file for file in files})


def feature_file(features_dir: Source, name: str) -> Place:
    """Path of a slide's features: its name without a slide's suffix, with its folders, always inside ``features_dir``.

    Of a name that is a URL its bucket or server is the first folder.
    A name that leaves the folder (absolute, or with "..") is reduced to its last part and a hash.

    Example:
        >>> feature_file("features", "site-a/slide 1.svs").as_posix()
        'features/site-a/slide 1.h5'
        >>> feature_file("features", "../slide 1.svs").as_posix()
        'features/slide 1-5a0416d2.h5'
    """
    folder, path = as_place(features_dir), PurePath(name.partition("://")[2] or name)
    stem = path.stem if path.suffix.lower() in SLIDES else path.name
    if path.anchor or ".." in path.parts or not stem:
        return folder / f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.h5"
    return folder / (path.parent / f"{stem}.h5").as_posix()


def slide_source(item: Mapping[str, Any]) -> str:
    """16 hex digits that change with the size or time of the slide's files, and with the item's ``mpp``."""
    made_of = file_stats(as_place(item["image"])), str(item.get("mpp") or "")
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
