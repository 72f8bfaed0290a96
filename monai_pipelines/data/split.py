"""Train, validation and test: as a source gives them, or drawn by patient."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sklearn.model_selection import StratifiedKFold, train_test_split

from monai_pipelines.data.contents import content_hashes
from monai_pipelines.errors import CohortError
from monai_pipelines.remote import Source, as_place

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "test": "test", "testing": "test"}  # fmt: skip

_RENAME = "classes of other names are mapped by rename, as {'theirs': 'yours'} (evaluate --map theirs=yours)"

Item = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """The content of a source before it is split, with all its problems.

    Attributes:
        source: the table, folder or archive, for messages.
        items: ``image`` (path, or `Remote` where it is at a URL), ``name``, ``label``, ``patient`` and, if the source
            has one, ``split``.
        classes: class names by index.
        problems: one line each.
    """

    source: Source
    items: list[Item]
    classes: tuple[str, ...]
    problems: list[str]


@dataclass(frozen=True)
class Cohort:
    """A source's images or scans, split by patient.

    Attributes:
        train, validation, test: MONAI datalists: ``image`` (path, or `Remote` where it is at a URL), ``label`` (class
            index; multilabel: a list of 0.0 and 1.0, one per class), ``patient``, ``name`` (the image as the source has
            it; of a URL without user, password and query) and any other column of the table.
        classes: class names by index.
        seed, fractions: of the split.
        external: whether the test data are others than those that are split.
    """

    train: list[Item]
    validation: list[Item]
    test: list[Item]
    classes: tuple[str, ...]
    seed: int = 0
    fractions: tuple[float, ...] = ()
    external: bool = False

    def labels(self, split: str = "train") -> list[Any]:
        """Label of every item of a split."""
        return [item["label"] for item in getattr(self, split)]

    @property
    def digest(self) -> str:
        """SHA-256 of names, labels, patients, given splits and boxes; it does not depend on the draw."""
        boxes = ("boxes", "box_labels", "box_ignore")
        lines = [
            json.dumps(
                [item["name"], item["label"], item["patient"], item.get("split")]
                + [item[key].tolist() for key in boxes if key in item]
            )
            for split in SPLITS
            for item in getattr(self, split)
        ]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    @cached_property
    def split_card(self) -> dict[str, Any]:
        """The split as plain data, stored with the weights: who was seen in training is hashed, not named.

        Returns:
            ``seed``, ``split_fractions``, ``data_sha256`` (`digest`), and of the training and validation data ``seen``
            (`seen_hashes`: anyone with a list of names can check which of them are included) and ``files``
            (`monai_pipelines.data.contents.content_hashes`).
        """
        return {
            "seed": self.seed,
            "split_fractions": [float(fraction) for fraction in self.fractions],
            "data_sha256": self.digest,
            "seen": sorted(seen_hashes(self.train) | seen_hashes(self.validation)),
            "files": sorted(content_hashes([*self.train, *self.validation])),
        }


def seen_hashes(part: Any) -> set[str]:
    """16 hex digits for the name and the patient of each item of a datalist or dataset."""
    items = getattr(part, "data", part)
    names = {f"{key}:{item[key]}" for item in items for key in ("name", "patient") if key in item}
    return {hashlib.sha256(name.encode()).hexdigest()[:16] for name in names}


def split_listing(listing: Listing, fractions: Sequence[float], seed: int) -> Cohort:
    """Split the images of a source by patient: as the source says, otherwise at random.

    Patients are drawn separately for each class (a patient's highest; multilabel: the rarest). If the source's split
    has no validation part, one is drawn from the training patients in the proportion given by ``fractions``, or is the
    fold that they name. A source whose split names test images alone, or fractions (0, 0, 1), give a cohort for
    evaluation only.

    Args:
        listing: of the source.
        fractions, seed: of `read_cohort`.

    Raises:
        CohortError: the listing's problems and everything else that prevents a split.
    """
    if _all_test(listing, fractions):
        return _only_test(listing, fractions, seed)
    split, problems, torn = _split(listing, fractions, seed)
    if problems or torn:
        raise CohortError(listing.source, [*problems, *torn])
    train, validation, test = (split[name] for name in SPLITS)
    return Cohort(train, validation, test, listing.classes, seed, tuple(fractions))


def _all_test(listing: Listing, fractions: Sequence[float]) -> bool:
    given = {SPLIT_NAMES.get(item.get("split", "").strip().lower()) for item in listing.items}
    return given == {"test"} or (given == {None} and [*fractions] == [0, 0, 1])


def _only_test(listing: Listing, fractions: Sequence[float], seed: int) -> Cohort:
    """All images of a source for the test, whatever split it has; a class may be missing.

    Raises:
        CohortError: the listing's problems, or no image.
    """
    if listing.problems:
        raise CohortError(listing.source, [*listing.problems, _RENAME])
    if not listing.items:
        raise CohortError(listing.source, ["no image in it"])
    return Cohort([], [], listing.items, listing.classes, seed, tuple(fractions), external=True)


def split_sources(
    list_source: Callable[[Source, bool], Listing],
    source: Source | None,
    test_source: Source | None,
    fractions: Sequence[float],
    seed: int,
) -> Cohort:
    """Split a source, or take all of another one for the test.

    Args:
        list_source: the listing of a source; True: of other data than those of the training.
        source: what is split, with ``test_source`` into train and validation; None: all is test.
        test_source: other data, for the test; None: ``source`` has the test data, too.
        fractions, seed: of `read_cohort`.

    Raises:
        CohortError: the problems of the sources, and everything else that prevents a split.
        ValueError: no source at all.
    """
    if test_source is None:
        if source is None:
            raise ValueError("no data: name dataset_dir, or test_dir for an evaluation")
        return split_listing(list_source(source, False), fractions, seed)
    test = _only_test(list_source(test_source, True), fractions, seed)
    if source is None:
        return test
    split, problems, torn = _split(_without_test(list_source(source, False)), fractions, seed, SPLITS[:2])
    if problems or torn:
        raise CohortError(source, [*problems, *torn])
    items, trained = test.test, {item["name"] for part in ("train", "validation") for item in split[part]}
    if any(item["name"] in trained for item in items):  # files and rows that are named by them stay apart
        place = as_place(test_source)
        folder = place.resolve().name if isinstance(place, Path) else place.name
        items = [_prefixed(item, folder) for item in items]
    return replace(test, train=split["train"], validation=split["validation"], test=items)


def _prefixed(item: Item, folder: str) -> Item:
    name = f"{folder}/{item['name']}"
    return {**item, "name": name, "patient": name if item["patient"] == item["name"] else item["patient"]}


def check_trainable(cohort: Any) -> None:
    """Check that a cohort has images to train on and to choose the epoch by.

    Raises:
        ValueError: it has none of them.
    """
    if missing := [name for name in SPLITS[:2] if not len(getattr(cohort, name))]:
        raise ValueError(
            f"the data have no image in {' and '.join(missing)}: training wants some; test images alone can be "
            "evaluated (--run_id evaluate)"
        )


def _without_test(listing: Listing) -> Listing:
    """For training; without a split, validation is drawn from it."""
    if not any(item.get("split") for item in listing.items):
        return replace(listing, items=[{**item, "split": "train"} for item in listing.items])
    items = [item for item in listing.items if SPLIT_NAMES.get(item["split"].strip().lower()) != "test"]
    if num := len(listing.items) - len(items):
        logger.warning("%s: its test images are left out, other data are the test: %d", listing.source, num)
    return replace(listing, items=items)


def split_problems(listing: Listing) -> list[str]:
    """The problems that `split_listing` would raise, except patients in several splits: no patient is named."""
    return _split(listing, (0.7, 0.15, 0.15), 0)[1]


def _split(
    listing: Listing, fractions: Sequence[float], seed: int, wanted: Sequence[str] = SPLITS
) -> tuple[dict[str, list[Item]], list[str], list[str]]:
    """Items by split, problems, such as no item in a wanted one, and one problem for each patient in several splits."""
    problems, classes, items = list(listing.problems), listing.classes, listing.items
    num_folds = _fold(fractions)[1]
    torn: list[str] = []
    labels: defaultdict[str, set[int]] = defaultdict(set)
    for item in items:
        labels[item["patient"]].update(label_indices(item["label"]))
    count = Counter(k for indices in labels.values() for k in indices)
    if any(isinstance(item["label"], list) for item in items):  # the rarest label; patients without any form a stratum
        strata = {p: min(ks, key=lambda k: (count[k], k), default=len(classes)) for p, ks in labels.items()}
    else:
        strata = {patient: max(indices) for patient, indices in labels.items()}
    if any(item.get("split") for item in items):
        split_of, torn = _given_split(items, problems)
        num_train = [*split_of.values()].count("train")
        if "validation" not in split_of.values():
            if num_train < num_folds:
                problems.append(f"{num_folds} folds need as many training patients, got {num_train}")
            _draw_validation(split_of, strata, fractions, seed)
        elif num_folds:
            problems.append("folds need data without a validation part, got a split with one")
    else:
        wanted_of_each = max(3, num_folds)
        few = [c for k, c in enumerate(classes) if count[k] < wanted_of_each and (count[k] or not problems)]
        places = f"{wanted_of_each} folds" if wanted_of_each > 3 else "train, validation and test"
        problems += [f"class {c!r} has fewer than {wanted_of_each} patients: it cannot be in {places}" for c in few]
        split_of = _drawn_split(strata, fractions, seed)
    split: dict[str, list[Item]] = {s: [i for i in items if split_of.get(i["patient"]) == s] for s in SPLITS}
    if not problems and not torn:
        for name in wanted:
            if not split[name]:
                present = " and ".join(sorted(set(split_of.values())))
                problems.append(f"no patient in {name}; the given split has {present}")
                continue
            indices = {k for item in split[name] for k in label_indices(item["label"])}
            problems += [f"class {c!r} has no patient in {name}" for k, c in enumerate(classes) if k not in indices]
    return split, problems, torn


def _given_split(items: Sequence[Item], problems: list[str]) -> tuple[dict[str, str], list[str]]:
    """The split of each patient according to the items, and problems with patients in several splits."""
    splits_of: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        split = SPLIT_NAMES.get(item["split"].strip().lower())
        if split is None:
            problems.append(f"{item['name']}: unknown split {item['split']!r}, wanted train, validation or test")
        else:
            splits_of[item["patient"]].add(split)
    torn = [f"patient {p} is in {' and '.join(sorted(s))}" for p, s in splits_of.items() if len(s) > 1]
    return {patient: min(splits) for patient, splits in splits_of.items()}, torn


def label_indices(label: int | Sequence[float]) -> list[int]:
    """Indices of an item's classes."""
    return [label] if isinstance(label, int) else [k for k, present in enumerate(label) if present]


def _drawn_split(strata: Mapping[str, int], fractions: Sequence[float], seed: int) -> dict[str, str]:
    _check_fractions(fractions)
    fold, num_folds = _fold(fractions)
    if num_folds:
        fold_of = _folds(strata, num_folds, seed)
        split_of_fold = {fold: "test", fold % num_folds + 1: "validation"}
        return {patient: split_of_fold.get(number, "train") for patient, number in fold_of.items()}
    split_of: dict[str, str] = {}
    for members in _members(strata):
        if len(members) < 3:  # multilabel: the other patients with this label are drawn by a rarer one
            split_of |= dict.fromkeys(members, "train")
            continue
        num_test = min(max(1, round(len(members) * fractions[2])), len(members) - 2)
        num_validation = min(max(1, round(len(members) * fractions[1])), len(members) - num_test - 1)
        rest, test = train_test_split(members, test_size=num_test, random_state=seed)
        train, validation = train_test_split(rest, test_size=num_validation, random_state=seed)
        for split, drawn in zip(SPLITS, (train, validation, test), strict=True):
            split_of |= dict.fromkeys(drawn, split)
    return split_of


def _draw_validation(
    split_of: dict[str, str], strata: Mapping[str, int], fractions: Sequence[float], seed: int
) -> None:
    _check_fractions(fractions)
    fold, num_folds = _fold(fractions)
    if num_folds:
        fold_of = _folds({p: k for p, k in strata.items() if split_of.get(p) == "train"}, num_folds, seed)
        split_of |= {patient: "validation" for patient, number in fold_of.items() if number == fold}
        return
    share = fractions[1] / (fractions[0] + fractions[1])
    for members in _members({p: k for p, k in strata.items() if split_of.get(p) == "train"}):
        if len(members) > 1:
            num_validation = min(max(1, round(len(members) * share)), len(members) - 1)
            _, validation = train_test_split(members, test_size=num_validation, random_state=seed)
            split_of |= dict.fromkeys(validation, "validation")


def _members(strata: Mapping[str, int]) -> list[list[str]]:
    return [sorted(p for p, stratum in strata.items() if stratum == k) for k in sorted(set(strata.values()))]


def _fold(fractions: Sequence[float]) -> tuple[int, int]:
    """Number of the fold, from 1, and number of folds; (0, 0) where there are none."""
    return (int(fractions[0]), int(fractions[1])) if len(fractions) == 2 else (0, 0)


def _folds(strata: Mapping[str, int], num_folds: int, seed: int) -> dict[str, int]:
    """The fold of each patient, from 1; equally many of each stratum in all. Without enough patients there are none."""
    count = Counter(strata.values())
    patients = sorted(strata)
    if len(patients) < num_folds:
        return {}
    common = max(count, key=lambda stratum: (count[stratum], stratum))  # takes in those with fewer patients than folds
    groups = [strata[patient] if count[strata[patient]] >= num_folds else common for patient in patients]
    if count[common] < num_folds:
        groups = [0] * len(patients)
    parts = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(patients, groups)
    return {patients[index]: number for number, (_, part) in enumerate(parts, start=1) for index in part}


def _check_fractions(fractions: Sequence[float]) -> None:
    fold, num_folds = _fold(fractions)
    if num_folds:
        valid = num_folds >= 3 and 1 <= fold <= num_folds and [*fractions] == [fold, num_folds]
    else:
        valid = len(fractions) == 3 and min(fractions) > 0 and abs(sum(fractions) - 1) < 1e-6
    if not valid:
        raise ValueError(
            "fractions must be three positive numbers that sum to 1, or a fold and the number of folds, 3 or more, got "
            f"{list(fractions)}"
        )
