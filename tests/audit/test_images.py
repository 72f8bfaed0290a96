"""The audit: planted problems are found, different images are not."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from monai_pipelines.audit import Audit, audit_cohort, kind_named
from monai_pipelines.commands.audit import print_audit
from monai_pipelines.data import Listing, list_images, read_images
from monai_pipelines.errors import CohortError


def _picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Blobs of color, different for each seed."""
    noise = np.random.default_rng(seed).standard_normal((*size, 3))
    blobs = gaussian_filter(noise, (3, 3, 0.5))
    return Image.fromarray(np.uint8(255 * (blobs - blobs.min()) / np.ptp(blobs)))


def _save(folder: Path, name: str, image: Image.Image, **options: object) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **options)


def _cohort(folder: Path, number: int = 6) -> Path:
    """Different images: two classes, three splits, two images per patient."""
    seed = 0
    for split in ("train", "val", "test"):
        for name in "ab":
            for k in range(number):
                seed += 1
                _save(folder, f"{split}/{name}/{split}{name}{k // 2}_{k}.png", _picture(seed))
    return folder


def _audit(folder: Path, similarity: float = 0.95) -> Audit:
    return _audit_images(list_images(folder, patient_pattern=r"(\w+)_\w+\."), similarity)


def _audit_images(listing: Listing, similarity: float = 0.95) -> Audit:
    return audit_cohort(listing, kind_named("image"), similarity, num_workers=0)


def _copy(folder: Path, source: str, target: str) -> None:
    (folder / target).write_bytes((folder / source).read_bytes())


def test_a_sound_cohort(tmp_path: Path) -> None:
    audit = _audit(_cohort(tmp_path))
    assert audit.to_fix == []
    assert audit.exact == audit.near == []
    assert audit.counts == {split: {"a": 6, "b": 6} for split in ("train", "validation", "test")}
    assert audit.imbalance == {"train": 1, "validation": 1, "test": 1}
    assert audit.sizes["a"] == {"height": [64, 64, 64], "width": [64, 64, 64], "num_sizes": 1}
    assert audit.file_types == {"a": {"png": 18}, "b": {"png": 18}}
    assert audit.colors == {"a": {"color": 18}, "b": {"color": 18}}


def test_counts_sizes_and_types_by_class(tmp_path: Path) -> None:
    for k in range(9):
        _save(tmp_path, f"a/{k}_x.jpg", _picture(k, (40 + k, 90)).convert("L"))
    for k in range(3):
        _save(tmp_path, f"b/{k}_x.png", _picture(20 + k))
    _copy(tmp_path, "b/0_x.png", "b/3_x.jpg")
    audit = _audit(tmp_path)
    assert audit.counts == {"all": {"a": 9, "b": 4}}
    assert audit.imbalance["all"] == 9 / 4
    assert audit.sizes["a"] == {"height": [40, 44, 48], "width": [90, 90, 90], "num_sizes": 9}
    assert audit.file_types == {"a": {"jpeg": 9}, "b": {"png": 4}}, "by content, not by name"
    assert audit.colors == {"a": {"gray": 9}, "b": {"color": 4}}


def test_unreadable_among_many(tmp_path: Path) -> None:
    folder = _cohort(tmp_path)
    whole = (folder / "train/a/traina0_0.png").read_bytes()
    (folder / "train/a/traina0_0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "test/b/testb0_9.png").write_text("no image")
    audit = _audit(folder)
    assert set(audit.unreadable) == {"train/a/traina0_0.png", "test/b/testb0_9.png"}
    assert all(audit.unreadable.values())
    assert audit.to_fix == ["2 unreadable images"]
    assert audit.counts["test"] == {"a": 6, "b": 7}


def test_patients_in_two_splits_are_listed(tmp_path: Path) -> None:
    folder = _cohort(tmp_path)
    _save(folder, "test/a/traina1_x.png", _picture(900))
    audit = _audit(folder)
    assert audit.patients_in_several_splits == [
        {"test": ["test/a/traina1_x.png"], "train": ["train/a/traina1_2.png", "train/a/traina1_3.png"]}
    ]
    assert audit.to_fix == ["1 patient in several splits"]


@pytest.mark.parametrize(
    ("source", "target", "kind", "to_fix"),
    [
        ("train/a/traina0_0.png", "test/a/testa0_9.png", "two splits", ["1 group of equal images in several splits"]),
        (
            "train/a/traina0_0.png",
            "train/b/trainb0_9.png",
            "two classes",
            ["1 group of equal images in several classes"],
        ),
        ("train/a/traina0_0.png", "train/a/traina1_9.png", "several patients", []),
        ("train/a/traina0_0.png", "train/a/traina0_9.png", "one patient", []),
    ],
)
def test_equal_images(tmp_path: Path, source: str, target: str, kind: str, to_fix: list[str]) -> None:
    folder = _cohort(tmp_path)
    _copy(folder, source, target)
    audit = _audit(folder)
    (group,) = audit.exact
    assert sorted(group.images) == sorted([source, target])
    assert (group.kind, group.similarity, audit.near, audit.to_fix) == (kind, 1, [], to_fix)


def test_equal_pixels_in_other_files(tmp_path: Path) -> None:
    """Another compression, a gray image saved as color: the same pixels."""
    folder = _cohort(tmp_path, 2)
    gray = _picture(77).convert("L")
    _save(folder, "train/a/p1_1.png", gray, compress_level=1)
    _save(folder, "train/a/p1_2.tif", gray)
    _save(folder, "train/a/p1_3.png", gray.convert("RGB"), compress_level=9)
    (group,) = _audit(folder).exact
    assert [Path(name).name for name in group.images] == ["p1_1.png", "p1_2.tif", "p1_3.png"]


def test_equal_images_of_two_patients_must_be_fixed_without_a_split(tmp_path: Path) -> None:
    for k in range(3):
        _save(tmp_path, f"a/p{k}_0.png", _picture(k))
        _save(tmp_path, f"b/q{k}_0.png", _picture(10 + k))
    _copy(tmp_path, "a/p0_0.png", "a/p0_1.png")
    assert _audit(tmp_path).to_fix == []
    _copy(tmp_path, "a/p0_0.png", "a/p1_1.png")
    assert _audit(tmp_path).to_fix == ["1 group of equal images of several patients, which a random split may separate"]


def _jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": _jpeg,
    "smaller": lambda image: image.resize((40, 40), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "gray": lambda image: image.convert("L"),
    **{f"turned {way.name}": lambda image, way=way: image.transpose(way) for way in Image.Transpose},  # type: ignore[misc]
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_duplicates(tmp_path: Path, change: str) -> None:
    folder = _cohort(tmp_path)
    changed = CHANGES[change](Image.open(folder / "train/a/traina0_0.png"))
    _save(folder, "test/b/testb0_9.png", changed)
    audit = _audit(folder)
    assert audit.exact == []
    (group,) = audit.near
    assert sorted(group.images) == ["test/b/testb0_9.png", "train/a/traina0_0.png"]
    assert group.kind == "two classes, two splits"
    assert 0.95 <= group.similarity <= 1
    assert audit.to_fix == [], "only to be reviewed"


def test_threshold_groups_and_order(tmp_path: Path) -> None:
    folder = _cohort(tmp_path)
    first = _picture(500, (80, 80))
    for k, way in enumerate([None, Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT]):
        _save(folder, f"train/a/x{k}_0.png", first.transpose(way) if way is not None else first)
    _copy(folder, "train/a/x0_0.png", "train/b/y_0.png")
    second = _picture(501, (80, 80))
    _save(folder, "train/a/z_0.png", second)
    _save(folder, "train/a/z_1.png", second.crop((2, 2, 78, 78)))
    audit = _audit(folder)
    (group,) = audit.near
    assert {Path(name).name for name in group.images} == {"x0_0.png", "x1_0.png", "x2_0.png", "y_0.png"}
    assert audit.exact[0].across_classes
    loose = _audit(folder, similarity=0.6)
    assert [len(group.images) for group in loose.near] == [4, 2], "the worst first"
    assert 0.6 <= loose.near[1].similarity < 0.95
    with pytest.raises(ValueError, match="similarity must be above 0 and at most 1, got 3"):
        _audit(folder, similarity=3)


def test_blank_images_are_never_near_duplicates(tmp_path: Path) -> None:
    folder = _cohort(tmp_path)
    for k, shade in enumerate((250, 250, 251, 252)):
        _save(folder, f"train/a/blank_{k}.png", Image.new("RGB", (32, 32), (shade,) * 3))
    audit = _audit(folder)
    assert [len(group.images) for group in audit.exact] == [2]
    assert audit.near == []


def test_pairs_are_found_over_several_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = _cohort(tmp_path)
    mirrored = Image.open(folder / "train/a/traina0_0.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    _save(folder, "test/b/testb0_9.png", mirrored)
    whole = _audit(folder)
    monkeypatch.setattr("monai_pipelines.audit.likeness._BLOCK", 5)
    assert _audit(folder) == whole


def test_multilabel(tmp_path: Path) -> None:
    for k in range(4):
        _save(tmp_path, f"{k}.png", _picture(k))
    rows = ["0.png,A|B,train", "1.png,A,train", "2.png,No Finding,test", "3.png,B,test", "lost.png,A,test"]
    (tmp_path / "table.csv").write_text("\n".join(["image,label,split", *rows]))
    audit = _audit_images(list_images(tmp_path, multilabel=True))
    assert audit.counts == {
        "train": {"A": 2, "B": 1, "none of them": 0},
        "test": {"A": 0, "B": 1, "none of them": 1},
    }
    assert audit.imbalance == {"train": None, "test": None}
    assert audit.problems == ["line 6: lost.png: no such file or folder"]
    assert audit.to_fix == ["1 problem of the source"]


def test_plain_data_without_patients(tmp_path: Path) -> None:
    """Files must be named so that they can be fixed; patients must not."""
    rows = []
    for k in range(4):
        _save(tmp_path, f"{k}.png", _picture(k % 3))
        rows.append(f"{k}.png,{'ab'[k % 2]},Jane Doe,{'train' if k < 2 else 'test'}")
    (tmp_path / "table.csv").write_text("\n".join(["image,label,patient,split", *rows]))
    audit = _audit_images(list_images(tmp_path))
    text = json.dumps(audit.to_dict())
    assert "Jane" not in text
    again = json.loads(text)
    assert again["patients_in_several_splits"] == [{"train": ["0.png", "1.png"], "test": ["2.png", "3.png"]}]
    assert again["exact"][0]["images"] == ["0.png", "3.png"]
    assert again["to_fix"] == audit.to_fix


def test_long_lists_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = _cohort(tmp_path, 2)
    for k in range(25):
        (folder / f"train/a/bad_{k}.png").write_text("no image")
    print_audit(_audit(folder))
    out = capsys.readouterr().out
    assert "Unreadable images: 25" in out
    assert "... and 5 more" in out
    assert "To fix: 25 unreadable images.\nTo review: nothing." in out
    assert "13.5" in out, "27 images against 2"


def test_patients_in_file_names(tmp_path: Path) -> None:
    for k in range(6):
        _save(tmp_path, f"ill/person{k // 2}_virus_{k}.png", _picture(k))
        _save(tmp_path, f"normal/IM-{k:04d}.png", _picture(10 + k))
    [hint] = _audit_images(list_images(tmp_path)).to_review
    assert "several images share one" in hint
    pattern = hint.split("'")[1]
    listing = list_images(tmp_path, patient_pattern=pattern)
    assert not listing.problems
    assert len({item["patient"] for item in listing.items}) == 3 + 6
    assert _audit_images(listing).to_review == []


# ---- the command


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = _cohort(tmp_path / "data"), tmp_path / "out"

    def run(*arguments: object) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["monai_pipelines", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            import_module("monai_pipelines.__main__").main()
        return int(end.value.code or 0)

    pattern = ("--patient-pattern", r"(\w+)_\w+\.")
    assert run(folder, "--classes", "b, a", *pattern, "--out", out) == 0
    assert list(json.loads((out / "audit.json").read_text())["counts"]["train"]) == ["b", "a"]
    _copy(folder, "train/a/traina0_0.png", "test/a/testa0_9.png")
    assert run(folder, *pattern) == 1
    assert "1 group of equal images in several splits" in capsys.readouterr().out
    assert run(folder, "--classes", "a,c") == 1
    assert run(tmp_path / "lost") == 1
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "similarity", "num_exact", "num_near"),
    [
        ("chest_xray", 0.95, 2, 0),
        ("fundus", 0.95, 0, 0),
        ("histology/nct_crc_tiles", 0.5, 0, 0),
        pytest.param("histology/lc25000_colon", 0.5, 0, 7, id="pre-augmented"),
    ],
)
@pytest.mark.slow
def test_real_files(shared_data: Path, folder: str, similarity: float, num_exact: int, num_near: int) -> None:
    """Checked by visual inspection of each pair."""
    audit = _audit_images(list_images(shared_data / folder), similarity)
    assert (len(audit.exact), len(audit.near), audit.unreadable) == (num_exact, num_near, {})


# ---- problems of read_images


@pytest.mark.parametrize(
    ("split", "problem"),
    [
        ("holdout", "unknown split 'holdout', wanted train, validation or test"),
        ("", "unknown split '', wanted train, validation or test"),
        ("train", "class 'b' has no patient in test"),
    ],
)
def test_unusable_splits_must_be_fixed(tmp_path: Path, split: str, problem: str) -> None:
    rows = [f"{c}{k}.png,{c},{('train', 'train', 'val', 'test')[k]}" for c in "ab" for k in range(4)]
    rows[-1] = f"b3.png,b,{split}"
    for k, row in enumerate(rows):
        _save(tmp_path, row.partition(",")[0], _picture(k))
    (tmp_path / "table.csv").write_text("\n".join(["image,label,split", *rows]))
    listing = list_images(tmp_path)
    audit = _audit_images(listing)
    with pytest.raises(CohortError) as error:
        read_images(tmp_path)
    assert audit.problems == error.value.problems
    assert problem in audit.problems[0]
    assert audit.to_fix == ["1 problem of the source"]
    assert listing.problems == [], "not changed"


def test_a_class_of_two_patients_must_be_fixed(tmp_path: Path) -> None:
    for k in range(4):
        _save(tmp_path, f"a/p{k}_0.png", _picture(k))
        _save(tmp_path, f"b/q{k // 2}_{k}.png", _picture(10 + k))
    assert _audit(tmp_path).problems == [
        "class 'b' has fewer than 3 patients: it cannot be in train, validation and test"
    ]
