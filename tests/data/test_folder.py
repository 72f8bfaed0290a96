"""Folders of images: layout, classes, patients, and every problem at once."""

from __future__ import annotations

import logging
from pathlib import Path
from zipfile import ZipFile

import pytest

from monai_pipelines.data import Cohort, list_images, read_images
from monai_pipelines.errors import CohortError

SPLITS = ("train", "validation", "test")


def _fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def _per_class(number: int, *classes: str, under: str = "") -> list[str]:
    return [f"{under}{c}/p{k}_{c}.png" for c in classes for k in range(number)]


def _names(cohort: Cohort) -> list[str]:
    return sorted(item["name"] for split in SPLITS for item in getattr(cohort, split))


def _problems(source: Path, **options: object) -> list[str]:
    with pytest.raises(CohortError) as error:
        read_images(source, **options)  # type: ignore[arg-type]
    return error.value.problems


def test_one_folder_per_class(tmp_path: Path) -> None:
    names = _per_class(10, "b", "a")
    cohort = read_images(_fill(tmp_path, *names, "a/.DS_Store", "b/Thumbs.db", ".git/x.png"))
    assert cohort.classes == ("a", "b")
    assert _names(cohort) == sorted(names)
    for split in SPLITS:
        for item in getattr(cohort, split):
            assert item["name"].startswith("ab"[item["label"]])
            assert item["image"] == str(tmp_path / item["name"])
            assert item["patient"] == item["name"]
    assert [cohort.labels(split).count(1) for split in SPLITS] == [6, 2, 2]
    assert read_images(tmp_path, classes=["b", "a"]).labels("test").count(0) == 2


def test_split_folders(tmp_path: Path) -> None:
    parts = {"Train": 6, "val": 2, "test": 3}
    names = [name for part, n in parts.items() for name in _per_class(n, "a", "b", under=f"{part}/")]
    cohort = read_images(_fill(tmp_path, *names), ["b", "a"])
    assert [len(getattr(cohort, split)) for split in SPLITS] == [12, 4, 6]
    assert {item["name"].split("/")[0] for item in cohort.validation} == {"val"}
    assert {(item["name"].split("/")[1], item["label"]) for item in cohort.test} == {("b", 0), ("a", 1)}


def test_validation_is_drawn_from_the_training_patients(tmp_path: Path) -> None:
    names = [f"train/{c}/p{k}_{i}.png" for c in "ab" for k in range(20) for i in range(2)]
    names = [name.replace("/b/p", "/b/q") for name in names]
    _fill(tmp_path, *names, "test/a/t1_0.png", "test/b/t2_0.png")
    cohort = read_images(tmp_path, fractions=(0.6, 0.2, 0.2), patient_pattern=r"/(\w+)_")
    assert len(cohort.test) == 2
    assert [cohort.labels("validation").count(k) for k in (0, 1)] == [10, 10], "a quarter of 20 patients, 2 images each"
    assert not {i["patient"] for i in cohort.train} & {i["patient"] for i in cohort.validation}
    again = [read_images(tmp_path, seed=s, patient_pattern=r"/(\w+)_").validation for s in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize("layout", ["", "top/", "top/NCT-CRC/"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_single_folder_at_the_top_is_entered(tmp_path: Path, layout: str, zipped: bool) -> None:
    names = _per_class(3, "a", "b", under=layout)
    source = tmp_path / "source"
    if zipped:
        source = tmp_path / "source.zip"
        with ZipFile(source, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
    else:
        _fill(source, *names)
    assert _names(read_images(source)) == _per_class(3, "a", "b")


def test_table_in_a_folder_and_in_a_zip(tmp_path: Path) -> None:
    table = "image,label,patient\n" + "".join(f"{k}.png,{'xy'[k % 2]},p{k % 10}\n" for k in range(40))
    _fill(tmp_path / "set", *(f"{k}.png" for k in range(40)))
    (tmp_path / "set" / "table.csv").write_text(table)
    with ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in (tmp_path / "set").iterdir():
            archive.write(file, f"set/{file.name}")
    cohorts = [
        read_images(tmp_path / source, extract_dir=tmp_path / "out", seed=3)
        for source in ("set", "set/table.csv", "set.zip")
    ]
    assert cohorts[0].classes == ("x", "y")
    assert len({cohort.digest for cohort in cohorts}) == 1, "the same cohort from any source"
    assert str(tmp_path / "out") in cohorts[2].train[0]["image"]


def test_pattern_names_the_patients(tmp_path: Path) -> None:
    _fill(tmp_path, *(f"{c}/person{k}_{c}_{i}.jpeg" for c in ("bacteria", "virus") for k in range(9) for i in range(3)))
    cohort = read_images(tmp_path, patient_pattern=r"(person\d+_[a-z]+)_")
    for split in SPLITS:
        patients = [item["patient"] for item in getattr(cohort, split)]
        assert all(patients.count(patient) == 3 for patient in patients)
    for bad, message in (("person", "has no group"), ("(", "is not a regular expression")):
        with pytest.raises(ValueError, match=message):
            read_images(tmp_path, patient_pattern=bad)


def test_all_problems_at_once(tmp_path: Path) -> None:
    _fill(tmp_path, *_per_class(4, "NORMAL", "sick", "third"), "loose.png", "sick/odd.png")
    problems = _problems(tmp_path, classes=["Normal", "sik", "third"], patient_pattern=r"(p\d)_")
    assert problems == [
        "no folder for class 'Normal' (did you mean 'NORMAL'?)",
        "no folder for class 'sik' (did you mean 'sick'?)",
        "folder 'NORMAL' is none of the classes Normal, sik, third",
        "folder 'sick' is none of the classes Normal, sik, third",
        "to train with the names that the data have, add --classes \"['NORMAL','sick','third']\"",
        "images outside the class folders: 1, such as loose.png",
    ]
    assert _problems(tmp_path, patient_pattern=r"(p\d)_")[1] == (
        "patient_pattern '(p\\\\d)_' finds no patient in 1 of 13 images, such as sick/odd.png; "
        "null: a patient for each image"
    )


def test_problems_of_given_splits(tmp_path: Path) -> None:
    names = _per_class(3, "a", "b", under="train/") + _per_class(2, "a", under="test/")
    _fill(tmp_path, *names, "extra/a/x.png")
    problems = _problems(tmp_path, patient_pattern=r"(p\d+_.)\.")
    assert problems[0] == "folder 'extra' is next to 'test' but is not a split"
    assert set(problems[1:]) == {f"patient p{k}_a is in test and train" for k in range(2)}
    only = tmp_path / "only"
    _fill(only, *_per_class(3, "a", "b", under="train/"), *_per_class(3, "a", "b", under="val/"))
    assert _problems(only) == ["no patient in test; the given split has train and validation"]
    short = _fill(tmp_path / "short", *_per_class(3, "a", "b", under="train/"), *_per_class(2, "a", under="test/"))
    assert _problems(short) == ["class 'b' has no patient in test"]


def test_other_files_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _fill(tmp_path, *_per_class(3, "a", "b"), "a/notes.txt", "b/x.xml", "b/y.XML", "b/scan", "a/deep/er/q.TIF")
    with caplog.at_level(logging.WARNING):
        cohort = read_images(tmp_path)
    assert caplog.messages == [f"{tmp_path}: files that are not images are ignored: .txt (1), .xml (2), no suffix (1)"]
    assert "a/deep/er/q.TIF" in _names(cohort)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="wanted a CSV table, a folder of images, or a zip"):
        read_images(tmp_path / "lost")
    assert _problems(_fill(tmp_path, "a.png"))[0].startswith("wanted a table.csv, one folder of images per class")
    assert _problems(tmp_path / "a.png") == ["wanted a CSV table, a folder of images, or a zip of one"]
    assert "want a table.csv" in _problems(_fill(tmp_path, "a/b.png"), multilabel=True)[0]


def test_listing_with_problems(tmp_path: Path) -> None:
    listing = list_images(_fill(tmp_path, "train/a/p1.png", "test/a/p1.png", "odd.png"), patient_pattern=r"(p\d)")
    assert [(item["name"], item["split"]) for item in listing.items] == [
        ("test/a/p1.png", "test"),
        ("train/a/p1.png", "train"),
    ]
    assert len(listing.problems) == 1


def test_tiles_are_split_by_slide(tmp_path: Path) -> None:
    _fill(tmp_path, *(f"{c}/slide{k}_{i}.png" for c in "abc" for k in range(8) for i in range(2)))
    cohort = read_images(tmp_path, patient_pattern=r"(slide\d+)_")
    slides = [{item["patient"] for item in split} for split in (cohort.train, cohort.validation, cohort.test)]
    assert list(map(len, slides)) == [6, 1, 1]
    assert len(set.union(*slides)) == 8


# ---- patients of a table


def _tiles(folder: Path, columns: str = "image,label", fields: str = "") -> Path:
    """Two classes, eight slides each, two tiles of each slide."""
    names = [f"{c}{k}_{i}.png" for c in "ab" for k in range(8) for i in range(2)]
    _fill(folder, *names)
    (folder / "table.csv").write_text("\n".join([columns, *(f"{name},{name[0]}{fields}" for name in names)]))
    return folder


@pytest.mark.parametrize(("columns", "fields"), [("image,label", ""), ("image,label,patient", ", ")])
def test_pattern_names_the_patients_of_a_table(tmp_path: Path, columns: str, fields: str) -> None:
    _tiles(tmp_path, columns, fields)
    for source in (tmp_path, tmp_path / "table.csv"):
        cohort = read_images(source, patient_pattern=r"(\w\d)_")
        patients = [[item["patient"] for item in getattr(cohort, split)] for split in SPLITS]
        assert set().union(*patients) == {f"{c}{k}" for c in "ab" for k in range(8)}
        assert all(part.count(name) == 2 for part in patients for name in part), "both tiles of a slide stay together"
    assert _problems(tmp_path, patient_pattern=r"(a\d)_") == [
        "patient_pattern '(a\\\\d)_' finds no patient in 16 of 32 images, such as b0_0.png; "
        "null: a patient for each image"
    ]


def test_pattern_is_refused_if_a_table_names_patients(tmp_path: Path) -> None:
    _tiles(tmp_path, "image,label,patient", ",p")
    problem = "the table's column 'patient' names the patients: drop the column or the patient_pattern"
    assert problem in _problems(tmp_path, patient_pattern=r"(\w\d)_")
