"""Tables of scans: all problems at once, patients kept together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.data import Cohort, read_cohort
from monai_pipelines.data.table import classes_hint, list_table
from monai_pipelines.errors import CohortError

CLASSES = ["healthy", "disease"]
SPLITS = ("train", "validation", "test")


def _table(folder: Path, text: str, scans: tuple[str, ...] = (), encoding: str = "utf-8") -> Path:
    for scan in scans:
        (folder / scan).touch()
    file = folder / "table.csv"
    file.write_text(text, encoding=encoding)
    return file


def _cohort(folder: Path, patients: list[tuple[int, int]], **options: Any) -> Cohort:
    """A cohort of patients, each (label, number of scans)."""
    lines, scans = ["image,label,patient"], []
    for number, (label, num_scans) in enumerate(patients):
        for scan in range(num_scans):
            scans.append(f"p{number}_{scan}")
            lines.append(f"p{number}_{scan},{label},p{number}")
    return read_cohort(_table(folder, "\n".join(lines), tuple(scans)), CLASSES, **options)


def _patients(cohort: Cohort) -> dict[str, set[str]]:
    return {split: {item["patient"] for item in getattr(cohort, split)} for split in SPLITS}


def test_the_class_of_healthy_ones_is_suggested_first() -> None:
    """Of two classes the second is positive."""
    (hint,) = classes_hint(["DR", "NORMAL"])
    assert hint.endswith("add --classes \"['NORMAL','DR']\", the positive one last")
    assert "['no_finding','nodule']" in classes_hint(["no_finding", "nodule"])[0]


def test_items(tmp_path: Path) -> None:
    scans = ("a b", "c", "d", "e", "f", "g")
    text = "image,label,patient,split,site\n" + "\n".join(
        ["a b, disease ,p1,train,Basel", "c,0,,TRAINING,", "d,1,p3,val,", "e,healthy,p4,Valid,", "f,1,p5,testing"]
        + ["g,0,p6,test,"]
    )
    cohort = read_cohort(_table(tmp_path, text, scans), CLASSES)
    image = str(tmp_path / "a b")
    basel = {"image": image, "label": 1, "patient": "p1", "name": "a b", "split": "train", "site": "Basel"}
    assert cohort.train[0] == basel
    assert cohort.train[1]["patient"] == "c", "default: the name of the scan"
    assert cohort.test[0]["site"] == "", "a short line has empty fields, which can be batched"
    assert [cohort.labels(split) for split in SPLITS] == [[1, 0], [1, 0], [1, 0]]
    assert cohort.classes == ("healthy", "disease")


def test_byte_order_mark_blank_lines_and_absolute_paths(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    rows = "".join(f"{other / str(i)},{i % 2}\n\n" for i in range(6))
    for i in range(6):
        (other / str(i)).touch()
    cohort = read_cohort(_table(tmp_path, "image,label\n" + rows, encoding="utf-8-sig"), CLASSES)
    assert len(cohort.train + cohort.validation + cohort.test) == 6
    assert cohort.train[0]["image"].startswith(str(other))


# ---- problems


def test_a_wrong_label_is_listed_once(tmp_path: Path) -> None:
    rows = "".join(f"{k},{'diseas' if k % 3 else 'healthy'}\n" for k in range(3000))
    listing = list_table(_table(tmp_path, "image,label\n" + rows), CLASSES, is_optional=lambda name: True)
    assert listing.problems == [
        "line 3: 1 and 1,999 more rows: unknown label 'diseas' (did you mean 'disease'?), "
        "wanted one of healthy, disease or 0 to 1"
    ]


def test_labels_of_other_classes_and_other_separators(tmp_path: Path) -> None:
    listing = list_table(_table(tmp_path, "image,label\na,cat\nb,dog\n", ("a", "b")), CLASSES)
    assert listing.problems[-1] == (
        "to train with the names that the data have, add --classes \"['cat','dog']\", the positive one last"
    )
    table = _table(tmp_path, "image,label\na,healthy;disease\n", ("a",))
    (problem,) = list_table(table, CLASSES, multilabel=True).problems
    assert problem.endswith("(several labels are joined by |)")


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = """image,label,patient,split
a,healthy,p1,train
lost,disease,p2,train
b,sick,p3,val
,disease,p4,test
c,,p5,test
d,2,p6,train
e,1,p1,test
f,1,p7,holdout
a,1,p8,train
"""
    with pytest.raises(CohortError) as error:
        read_cohort(_table(tmp_path, text, tuple("abcdef")), CLASSES)
    wanted = "wanted one of healthy, disease or 0 to 1"
    assert error.value.problems == [
        "line 3: lost: no such file or folder",
        "line 5: no image",
        f"line 4: b: unknown label 'sick', {wanted}",
        f"line 6: c: no label, {wanted}",
        f"line 7: d: unknown label '2', {wanted}",
        "a: listed for patients p1 and p8",
        "a: listed as healthy and as disease",
        "f: unknown split 'holdout', wanted train, validation or test",
        "patient p1 is in test and train",
    ]
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'table.csv'}: 9 problem(s)\n")
    assert all(problem in message for problem in error.value.problems)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("image|label\na|0\n", ["no column 'image'; the table's columns are image|label", "no column 'label'"]),
        ("file,class\na,0\n", ["no column 'image'; the table's columns are file, class", "no column 'label'"]),
        ("image,label\n", ["no row in it"]),
        ("", ["no column 'image'", "no column 'label'"]),
        ("image,label\na,0\nb,c,1\n", ["line 3: more fields than columns"]),
        (
            "image,label,split\na,0,train\nb,1,train\nc,0,val\nd,1,test\ne,0,test\n",
            ["class 'disease' has no patient in validation"],
        ),
        ("image,label\na,0\nb,0\nc,0\nd,1\ne,1\n", ["class 'disease' has fewer than 3 patients"]),
    ],
)
def test_each_kind_of_problem(tmp_path: Path, text: str, problems: list[str]) -> None:
    with pytest.raises(CohortError) as error:
        read_cohort(_table(tmp_path, text, tuple("abcde")), CLASSES)
    assert len(error.value.problems) == len(problems)
    for problem, wanted in zip(error.value.problems, problems, strict=True):
        assert problem.startswith(wanted)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no such table; wanted a CSV with the columns image, label"):
        read_cohort(tmp_path / "table.csv", CLASSES)


@pytest.mark.parametrize("fractions", [(0.7, 0.3), (0.7, 0.3, 0.0), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_must_sum_to_one(tmp_path: Path, fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fractions must be three positive numbers that sum to 1"):
        _cohort(tmp_path, [(i % 2, 1) for i in range(12)], fractions=fractions)


# ---- the split


def test_patients_are_never_in_two_splits_and_no_scan_is_lost(tmp_path: Path) -> None:
    patients = [(i % 2, 1 + i % 3) for i in range(24)]
    for seed in range(30):
        cohort = _cohort(tmp_path, patients, seed=seed)
        patients_of = _patients(cohort)
        assert sum(map(len, patients_of.values())) == len(set.union(*patients_of.values())) == 24
        assert sum(len(getattr(cohort, split)) for split in SPLITS) == sum(n for _, n in patients)


def test_split_depends_only_on_the_seed(tmp_path: Path) -> None:
    patients = [(i % 2, 1) for i in range(40)]
    assert _cohort(tmp_path, patients, seed=3) == _cohort(tmp_path, patients, seed=3)
    assert len({str(_patients(_cohort(tmp_path, patients, seed=seed)).items()) for seed in range(5)}) == 5
    lines = (tmp_path / "table.csv").read_text().splitlines()
    shuffled = "\n".join([lines[0], *reversed(lines[1:])])
    again = read_cohort(_table(tmp_path, shuffled), CLASSES, seed=3)
    assert _patients(again) == _patients(_cohort(tmp_path, patients, seed=3)), "not on the order of the lines"


@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.5, 0.3, 0.2), (0.8, 0.1, 0.1)])
def test_every_class_is_split_by_the_fractions(tmp_path: Path, fractions: tuple[float, float, float]) -> None:
    cohort = _cohort(tmp_path, [(int(i < 40), 1) for i in range(200)], fractions=fractions)
    for split, fraction in zip(SPLITS, fractions, strict=True):
        labels = cohort.labels(split)
        assert labels.count(1) == round(40 * fraction)
        assert labels.count(0) == round(160 * fraction)


@pytest.mark.parametrize("rare", [3, 4, 5, 7])
@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.1, 0.1, 0.8), (0.1, 0.8, 0.1), (0.9, 0.05, 0.05)])
def test_a_rare_class_is_in_every_split(tmp_path: Path, rare: int, fractions: tuple[float, float, float]) -> None:
    for seed in range(5):
        cohort = _cohort(tmp_path, [(int(i < rare), 1) for i in range(60)], seed=seed, fractions=fractions)
        assert all(1 in cohort.labels(split) and 0 in cohort.labels(split) for split in SPLITS)


def test_a_patient_with_both_labels_stays_together(tmp_path: Path) -> None:
    rows = [f"s{i},{i % 2},p{i}" for i in range(12)] + [f"t{i},1,p{i}" for i in range(0, 12, 4)]
    scans = tuple(row.partition(",")[0] for row in rows)
    cohort = read_cohort(_table(tmp_path, "image,label,patient\n" + "\n".join(rows), scans), CLASSES)
    assert sum(map(len, _patients(cohort).values())) == 12


# ---- multilabel, names of classes, digest


def _findings(folder: Path, rows: list[tuple[str, str]], header: str = "image,label,patient") -> Path:
    lines = [f"{k}.png,{label},{patient}" for k, (label, patient) in enumerate(rows)]
    return _table(folder, "\n".join([header, *lines]), tuple(f"{k}.png" for k in range(len(rows))))


def test_multilabel(tmp_path: Path) -> None:
    rows = [("A|B", "p0"), ("No Finding", "p1"), ("", "p2"), ("B", "p3"), ("1", "p4")] * 8
    rows = [(label, f"{patient}_{k}") for k, (label, patient) in enumerate(rows)]
    cohort = read_cohort(_findings(tmp_path, rows), ["A", "B"], multilabel=True)
    labels = {item["name"]: item["label"] for split in SPLITS for item in getattr(cohort, split)}
    wanted = [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]] * 8
    assert labels == {f"{k}.png": label for k, label in enumerate(wanted)}
    assert isinstance(cohort.train[0]["label"][0], float)
    for k in (0, 1):
        assert all(any(label[k] for label in cohort.labels(split)) for split in SPLITS)
    assert read_cohort(_findings(tmp_path, rows[:-1]), multilabel=True).classes == ("A", "B", "1")


def test_the_rarest_label_is_in_every_split(tmp_path: Path) -> None:
    """3 of 200 patients have the rare label, always together with the common one."""
    rows = [("common|rare" if k < 3 else ("common" if k % 2 else ""), f"p{k}") for k in range(200)]
    for seed in range(10):
        cohort = read_cohort(_findings(tmp_path, rows), ["common", "rare"], seed=seed, multilabel=True)
        assert [sum(label[1] for label in cohort.labels(split)) for split in SPLITS] == [1, 1, 1]
        assert [sum(label[0] for label in cohort.labels(split)) for split in SPLITS] == pytest.approx(
            [71, 16, 16], abs=1
        )


def test_problems_of_multilabels(tmp_path: Path) -> None:
    rows = [("A|Z|Y", "p0"), ("A", "p1"), ("A", "p2"), ("A", "p3")]
    with pytest.raises(CohortError) as error:
        read_cohort(_findings(tmp_path, rows), ["A", "B"], multilabel=True)
    assert error.value.problems == [
        "line 2: 0.png: unknown label 'Z', wanted one of A, B or 0 to 1",
        "line 2: 0.png: unknown label 'Y', wanted one of A, B or 0 to 1",
    ]
    twice = _table(tmp_path, "image,label\n" + "0.png,A|B\n0.png,\n" + "".join(f"{k}.png,A|B\n" for k in (1, 2, 3)))
    with pytest.raises(CohortError, match=r"0.png: listed as A\|B and as No Finding"):
        read_cohort(twice, ["A", "B"], multilabel=True)


def test_classes_may_come_from_the_table(tmp_path: Path) -> None:
    names = [("tumour", "p"), ("fat", "p")] * 5
    assert read_cohort(_findings(tmp_path, [(n, f"{p}{k}") for k, (n, p) in enumerate(names)])).classes == (
        "fat",
        "tumour",
    )
    numbers = [(str(k % 11), f"p{k}") for k in range(44)]
    assert read_cohort(_findings(tmp_path, numbers)).classes == tuple(map(str, range(11)))


def test_digest_depends_on_names_labels_patients_and_given_splits(tmp_path: Path) -> None:
    def digest(folder: Path, rows: list[tuple[str, str]], **options: Any) -> str:
        folder.mkdir(exist_ok=True)
        return read_cohort(_findings(folder, rows), ["a", "b"], **options).digest

    rows = [("ab"[k % 2], f"p{k}") for k in range(20)]
    first = digest(tmp_path / "one", rows)
    assert first == digest(tmp_path / "elsewhere", rows), "not on the path of the files"
    lines = (tmp_path / "one/table.csv").read_text().splitlines()
    (tmp_path / "one/table.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    assert read_cohort(tmp_path / "one/table.csv", ["a", "b"]).digest == first, "not on the order of the lines"
    changed = [*rows[:-1], ("a", "p19")], [*rows[:-1], ("b", "p20")]
    assert len({first, *(digest(tmp_path / "two", other) for other in changed)}) == 3
    assert digest(tmp_path / "two", rows, seed=1) == first, "not on the draw, so that another seed can be recognized"
    cohort = read_cohort(tmp_path / "two/table.csv", ["a", "b"], seed=1)
    lines = [
        json.dumps([item["name"], item["label"], item["patient"], None])
        for split in SPLITS
        for item in getattr(cohort, split)
    ]
    assert cohort.digest == hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def test_of_very_many_problems_the_first_and_the_last_are_shown() -> None:
    shown = str(CohortError("table.csv", [f"line {i}" for i in range(300)])).splitlines()
    assert shown[0] == "table.csv: 300 problem(s)"
    assert (shown[1], shown[56], shown[-1]) == ("  - line 0", "  - ... 240 more ...", "  - line 299")
