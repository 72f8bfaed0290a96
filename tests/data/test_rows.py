"""Tables as spreadsheets save them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from monai_pipelines.data import read_cohort
from monai_pipelines.data.rows import read_rows
from monai_pipelines.data.table import list_table
from monai_pipelines.errors import CohortError

TEXT = "image,label,patient,remark\na.nii,0,Müller,geprüft\nb.nii,1,Żak,x\n"


def table(folder: Path, data: bytes) -> Path:
    file = folder / "table.csv"
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_and_separators(tmp_path: Path, encoding: str, separator: str, end: str) -> None:
    text = TEXT.replace(",", separator).replace("\n", end)
    rows = read_rows(table(tmp_path, text.encode(encoding)), ["image"])
    assert [row["patient"] for row in rows] == ["Müller", "Żak"]
    assert [row["line"] for row in rows] == [2, 3]


def test_windows_code_page_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = read_rows(table(tmp_path, TEXT.replace("Ż", "Z").encode("cp1252")), ["image"])
    assert rows[0]["remark"] == "geprüft"
    assert "not UTF-8, read as Windows-1252" in caplog.text


def test_quoted_separators_and_blank_rows(tmp_path: Path) -> None:
    rows = read_rows(table(tmp_path, b'image,label,remark\n"a, b.nii",0,"two\nlines"\n,,\n\nc.nii,1\n'), ["image"])
    assert [(row["image"], row["remark"], row["line"]) for row in rows] == [
        ("a, b.nii", "two\nlines", 3),
        ("c.nii", "", 6),
    ]


@pytest.mark.parametrize("head", ["Image,LABEL, Patient ,Split", " image,label ,patient,SPLIT"])
def test_known_columns_in_any_case(tmp_path: Path, head: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        (row,) = read_rows(table(tmp_path, f"{head}\na,0,p,train\n".encode()), ["image", "label"])
    assert {name: row[name] for name in ("image", "label", "patient", "split")} == {
        "image": "a",
        "label": "0",
        "patient": "p",
        "split": "train",
    }
    assert "columns read: " in caplog.text


@pytest.mark.parametrize(
    ("column", "known"),
    [
        *(
            (name, "patient")
            for name in ("patient_id", "PatientID", "Patients", "patiant", "subject", "Subject_ID", "pid")
        ),
        *((name, "split") for name in ("split_", "splits", "spilt", "subset")),
    ],
)
def test_a_column_near_a_known_one_is_an_error(tmp_path: Path, column: str, known: str) -> None:
    with pytest.raises(CohortError) as error:
        read_rows(table(tmp_path, f"image,label,{column}\na,0,p\n".encode()), ["image", "label"])
    (problem,) = error.value.problems
    assert problem.startswith(f"column {column!r} is not used (did you mean {known!r}?)")


@pytest.mark.parametrize("column", ["patient_age", "patient_sex", "site", "image_type", "scanner", "split_thickness"])
def test_other_columns_are_kept(tmp_path: Path, column: str) -> None:
    (row,) = read_rows(table(tmp_path, f"image,label,{column}\na,0,p\n".encode()), ["image", "label"])
    assert row[column] == "p"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"image,label,label\na,0,1\n", "column 'label' appears 2 times"),
        (b"file,label\na,0\n", "no column 'image'; the table's columns are file, label (rename 'file'?)"),
        (b"image,label\na,0,5\n", "line 2: more fields than columns (a ',' without quotes?)"),
        (b"image,label\n", "no row in it"),
        (b"\xff\xfe\x00", "not text in utf-16; save it again as CSV UTF-8"),
    ],
)
def test_problems(tmp_path: Path, data: bytes, problem: str) -> None:
    with pytest.raises(CohortError) as error:
        read_rows(table(tmp_path, data), ["image", "label"])
    assert problem in error.value.problems


def test_one_scan_listed_twice(tmp_path: Path) -> None:
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).touch()
    (tmp_path / "linked.nii").symlink_to(tmp_path / "a.nii")
    rows = "a.nii,0,p\nb.nii,1,q\na.nii,0,p\n./a.nii,0,p\nlinked.nii,0,r\nb.nii,0,q\n"
    problems = list_table(table(tmp_path, f"image,label,patient\n{rows}".encode())).problems
    assert problems == [
        "line 4: a.nii: already in line 2; remove one row",
        "line 5: ./a.nii: already in line 2, there as a.nii; remove one row",
        "linked.nii: listed for patients p and r",
        "b.nii: listed as 1 and as 0",
    ]


def test_names_in_other_forms(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    decomposed = unicodedata.normalize("NFD", "Müller.nii")
    (tmp_path / "scans" / decomposed).touch()
    (tmp_path / "scans" / "b.nii").touch()
    items = list_table(table(tmp_path, "image,label\nscans/Müller.nii,0\nscans\\b.nii,1\n".encode())).items
    assert [Path(item["image"]).exists() for item in items] == [True, True]
    forms = [unicodedata.normalize(form, "image,label,patient\nscans/b.nii,0,Müller\n") for form in ("NFC", "NFD")]
    patients = {list_table(table(tmp_path, text.encode())).items[0]["patient"] for text in forms}
    assert patients == {"Müller"}


def test_ten_thousand_rows(tmp_path: Path) -> None:
    for index in range(10_000):
        (tmp_path / f"{index}.nii").touch()
    rows = "".join(f"{index}.nii,{index % 2},p{index // 2}\n" for index in range(10_000))
    cohort = read_cohort(table(tmp_path, f"image,label,patient\n{rows}".encode()))
    assert len(cohort.train) + len(cohort.validation) + len(cohort.test) == 10_000
