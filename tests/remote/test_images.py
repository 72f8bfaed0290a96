"""Images at URLs give what the same images on this machine give: chains, tables, detection, audits."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_pipelines.audit import audit_cohort, kind_named, list_source
from monai_pipelines.chains import load_chain
from monai_pipelines.data import find_images, find_scans, read_cohort, read_detection_cohort, read_images
from monai_pipelines.data.arrays import read_arrays
from monai_pipelines.data.overlap import audit_splits
from monai_pipelines.data.prepared import PreparedDataset
from monai_pipelines.data.slide_table import find_slides, read_slides
from monai_pipelines.errors import CohortError, ScanError
from monai_pipelines.phantoms.dicom import write_dicom_series
from monai_pipelines.remote import Remote, ScratchError
from monai_pipelines.remote.scratch import SIZE
from monai_pipelines.slides import close_slides, open_slide
from monai_pipelines.transforms import LoadCT, LoadImage2D, LoadXray
from tests.features.small_slides import small_chain, small_slide
from tests.remote.servers import BUCKET, WebServer

Put = Callable[..., str]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, shape)


def save_picture(file: Path, seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(20, 30, 3, seed=seed).astype(np.uint8)).save(file)
    return file


def write_table(folder: Path, names: list[str], head: str = "image,label,patient", **columns: str) -> Path:
    rows = [f"{name},{'ab'[k % 2]},p{k}" for k, name in enumerate(names)]
    (folder / "table.csv").write_text("\n".join([head, *rows]))
    return folder / "table.csv"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of images with a table."""
    folder = tmp_path / "pictures"
    names = [f"images/{k}.png" for k in range(12)]
    for k, name in enumerate(names):
        save_picture(folder / name, k)
    write_table(folder, names)
    return folder


# ---- chains


def test_ct_series(put: Put, tmp_path: Path) -> None:
    folder = write_dicom_series(tmp_path / "series", noise(16, 12, 5).astype(np.int16), np.diag([-1.0, -1, 3, 1]))
    there, here = LoadCT()(put(folder, "ct/series")), LoadCT()(folder)
    assert torch.equal(there, here)
    assert torch.equal(there.affine, here.affine)
    assert there.meta["filename_or_obj"] == f"s3://{BUCKET}/ct/series"


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mhd"])
def test_ct_files(suffix: str, put: Put, web: WebServer, tmp_path: Path) -> None:
    import SimpleITK as sitk

    folder = tmp_path / "web" / "ct"
    folder.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(noise(5, 16, 12).astype(np.int16)), str(folder / f"scan{suffix}"))
    put(folder, "ct")
    for url in (f"s3://{BUCKET}/ct/scan{suffix}", f"{web.url}/ct/scan{suffix}"):
        assert torch.equal(LoadCT()(url), LoadCT()(folder / f"scan{suffix}"))


@pytest.mark.parametrize("load", [LoadImage2D(), LoadXray()])
def test_pictures(load: Any, put: Put, web: WebServer, tmp_path: Path) -> None:
    file = save_picture(tmp_path / "web" / "a b.png")
    for url in (put(file, "a b.png"), f"{web.url}/a%20b.png", file.as_uri()):
        assert torch.equal(load(url), load(file))


def test_a_chain(put: Put, tmp_path: Path) -> None:
    file = save_picture(tmp_path / "a.png")
    chain = load_chain("image2d", size=[16, 16])
    assert torch.equal(chain({"image": put(file, "a.png")})["image"], chain({"image": str(file)})["image"])


def test_slide(put: Put, tmp_path: Path) -> None:
    file = small_slide(tmp_path / "a.tif")
    there, here = open_slide(put(file, "slides/a.tif")), open_slide(file)
    assert (there.size, there.mpp, there.vendor) == (here.size, here.mpp, here.vendor)
    close_slides()
    sent = pickle.loads(pickle.dumps(there))
    assert np.array_equal(sent.read_region(10, 20, 100, 90), here.read_region(10, 20, 100, 90))
    assert str(sent.path) == f"s3://{BUCKET}/slides/a.tif"


def test_tiles_of_a_slide(put: Put, tmp_path: Path) -> None:
    file = small_slide(tmp_path / "a.tif")
    there, here = (small_chain()({"image": image})["image"] for image in (put(file, "a.tif"), str(file)))
    assert torch.equal(there, here)


def test_an_open_slide_does_not_leave_the_scratch_folder(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, others = small_slide(tmp_path / "a.tif"), [bytes(30_000)] * 4
    monkeypatch.setenv(SIZE, str((file.stat().st_size + 70_000) / 10**9))
    slide = open_slide(put(file, "a.tif"))
    before = slide.read_region(0, 0, 256, 192)
    for k, data in enumerate(others):
        with pytest.raises(ScanError, match=r"other.*nii: "):
            LoadCT()(put(data, f"other{k}.nii"))
    assert np.array_equal(slide.read_region(0, 0, 256, 192), before)
    close_slides()


def test_a_slide_that_changed_since_it_was_opened(put: Put, tmp_path: Path) -> None:
    slide = open_slide(put(small_slide(tmp_path / "a.tif"), "a.tif"))
    close_slides()
    put(small_slide(tmp_path / "b.tif", seed=1), "a.tif")
    with pytest.raises(ScanError, match="changed since it was opened"):
        slide.read_region(0, 0, 10, 10)


def test_errors_name_the_url(put: Put, tmp_path: Path) -> None:
    for key, load in (("a.nii", LoadCT()), ("a.png", LoadImage2D()), ("a.svs", open_slide)):
        url = put(b"no image", f"bad/{key}")
        with pytest.raises(ScanError) as raised:
            load(url)
        assert raised.value.path == url
        assert str(tmp_path) not in str(raised.value)


def test_a_scan_that_does_not_fit_is_no_bad_scan(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE, "0.000001")
    items = [{"image": Remote(put(bytes(5000), "a.nii"))}]
    with pytest.raises(ScratchError, match=SIZE):
        PreparedDataset(items, load_chain("lung_ct"), on_error="skip")


# ---- tables


def test_a_table_and_its_images(put: Put, pictures: Path) -> None:
    url = put(pictures, "cohort")
    here = read_cohort(pictures)
    for source in (url, f"{url}/table.csv"):
        there = read_cohort(source)
        assert there.digest == here.digest
        assert there.split_card == here.split_card
        assert [item["name"] for item in there.test] == [item["name"] for item in here.test]
        assert read_images(source).split_card == here.split_card


def test_a_table_here_names_urls(put: Put, pictures: Path, web: WebServer, tmp_path: Path) -> None:
    url = put(pictures, "cohort")
    save_picture(tmp_path / "web" / "a.png", 20)
    names = [f"{url}/images/{k}.png" for k in range(10)] + [f"{web.url}/a.png?signature=s3cret", "images/11.png"]
    cohort = read_cohort(write_table(pictures, names))
    items = {item["name"]: item["image"] for item in (*cohort.train, *cohort.validation, *cohort.test)}
    assert items[f"{url}/images/3.png"] == Remote(f"{url}/images/3.png")
    assert items["images/11.png"] == str(pictures / "images/11.png")
    assert items[f"{web.url}/a.png"] == Remote(f"{web.url}/a.png?signature=s3cret")
    assert "s3cret" not in repr(cohort)
    dataset = PreparedDataset(cohort.train, load_chain("image2d", size=[8, 8]), num_workers=2)
    assert dataset[0]["image"].shape == (3, 8, 8)


def test_all_missing_images_are_listed(put: Put, pictures: Path) -> None:
    for k in (3, 7):
        (pictures / f"images/{k}.png").unlink()
    with pytest.raises(CohortError) as raised:
        read_cohort(put(pictures, "cohort"))
    wanted = [f"line {k + 2}: images/{k}.png: no such file or folder" for k in (3, 7)]
    assert raised.value.problems == wanted


def test_urls_that_differ_only_in_the_query(web: WebServer, tmp_path: Path) -> None:
    save_picture(tmp_path / "web" / "a.png")
    names = [f"{web.url}/a.png?id=s3cret{k}" for k in range(2)]
    with pytest.raises(CohortError, match=r"line 3: .*differs from line 2 only in the query") as raised:
        read_cohort(write_table(tmp_path, names))
    assert "s3cret" not in str(raised.value)


def test_no_table(put: Put) -> None:
    with pytest.raises(CohortError, match=rf"s3://{BUCKET}/cohort/table\.csv: (?s:.*)no such table"):
        read_cohort(f"s3://{BUCKET}/cohort")


def test_no_secret_in_any_message_of_a_run(
    web: WebServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    save_picture(tmp_path / "web" / "good.png")
    (tmp_path / "web" / "bad.png").write_bytes(b"no image")
    names = [f"{web.url}/{name}.png?signature=s3cret".replace("//", "//jo:pa55@") for name in ("good", "bad", "none")]
    items = find_images(write_table(tmp_path, names))
    dataset = PreparedDataset(items, load_chain("image2d", size=[8, 8]), on_error="skip", cache_dir=tmp_path / "cache")
    assert [item["name"] for item in dataset.data] == [f"{web.url}/good.png"]
    with pytest.raises(CohortError) as raised:
        PreparedDataset(items, load_chain("image2d", size=[8, 8]))
    shown = "".join([caplog.text, str(raised.value), repr(dataset.skipped), *capsys.readouterr()])
    assert f"{web.url}/bad.png" in shown
    assert "s3cret" not in shown
    assert "pa55" not in shown


def test_inputs_of_an_inference(put: Put, pictures: Path, tmp_path: Path) -> None:
    url = put(pictures, "cohort")
    assert find_images(f"{url}/images/3.png") == [{"image": Remote(f"{url}/images/3.png"), "name": "3.png"}]
    names = [item["name"] for item in find_images(f"{url}/images")]
    assert names == sorted(f"{k}.png" for k in range(12))
    assert [item["image"] for item in find_images(f"{url}/table.csv")] == [
        Remote(f"{url}/images/{k}.png") for k in range(12)
    ]
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_images(f"{url}/none.png")


def test_scans_and_slides_below_a_url(put: Put, tmp_path: Path) -> None:
    for key in ("p1/s1/1", "p1/s1/deep/2", "p2/1.dcm", "p2/readme.txt", "p3/scan.nii.gz", "p3/notes.txt", "a.svs"):
        put(b"x", f"data/{key}")
    url = f"s3://{BUCKET}/data"
    assert [item["name"] for item in find_scans(f"{url}/p1")] == ["s1"]
    assert [item["name"] for item in find_scans(f"{url}/p2")] == ["p2"]
    assert [item["name"] for item in find_scans(f"{url}/p3")] == ["scan.nii.gz"]
    assert [item["name"] for item in find_slides(url)] == ["a.svs", "p2"]


def test_a_table_of_slides(put: Put, tmp_path: Path) -> None:
    names = [f"s{k}.tif" for k in range(6)]
    for k, name in enumerate(names):
        small_slide(tmp_path / "slides" / name, k)
    (tmp_path / "slides" / "a.geojson").write_text("[]")
    rows = [f"{name},{'ab'[k % 2]},p{k},0.5,a.geojson" for k, name in enumerate(names)]
    (tmp_path / "slides" / "table.csv").write_text("\n".join(["image,label,patient,mpp,annotation", *rows]))
    cohort = read_slides(put(tmp_path / "slides", "slides"))
    assert cohort.split_card == read_slides(tmp_path / "slides").split_card
    assert cohort.train[0]["annotation"] == Remote(f"s3://{BUCKET}/slides/a.geojson")


def test_an_array(put: Put, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=noise(4, 8, 8).astype(np.uint8))
    assert torch.equal(
        read_arrays(put(tmp_path / "a.npz", "a.npz"), 1).images, read_arrays(tmp_path / "a.npz", 1).images
    )
    with pytest.raises(CohortError, match=rf"s3://{BUCKET}/b\.npz: (?s:.*)not a NumPy file"):
        read_arrays(put(b"x", "b.npz"), 1)


@pytest.mark.parametrize("boxes", [None, "boxes.csv"])
def test_a_cohort_with_boxes(boxes: str | None, put: Put, pictures: Path) -> None:
    rows = [f"{k}.png,nodule,{k},2,5,6" for k in range(12)]
    (pictures / "boxes.csv").write_text("\n".join(["image,class,x,y,width,height", *rows]))
    url = put(pictures, "cohort")
    there = read_detection_cohort(url, boxes and f"{url}/{boxes}", seed=1)
    assert there.digest == read_detection_cohort(pictures, seed=1).digest
    put(b"image,class,x,y,width,height\n1.png,nodule,100,2,5,6", "cohort/boxes.csv")
    with pytest.raises(CohortError, match="box outside the image"):
        read_detection_cohort(url)
    put(b"image", "cohort/boxes.csv")
    with pytest.raises(CohortError, match=f"{url}/boxes.csv: "):
        read_detection_cohort(url)


def test_the_same_file_in_two_splits(put: Put, pictures: Path, tmp_path: Path) -> None:
    here, url = str(pictures / "images/1.png"), put(pictures, "cohort")
    put(pictures / "images/1.png", "cohort/copy.png")
    audit = audit_splits(
        {
            "train": [{"name": "a", "image": here}, {"name": "b", "image": Remote(f"{url}/images/2.png")}],
            "test": [{"name": "c", "image": Remote(f"{url}/copy.png")}],
        }
    )
    assert audit["equal_files_in_several_splits"] == [{"images": ["a", "c"], "splits": ["train", "test"]}]
    assert audit["checked"] == "files of 3 images"


def test_audit(put: Put, pictures: Path, tmp_path: Path) -> None:
    kind, there = list_source(put(pictures, "cohort"))
    _, here = list_source(pictures)
    assert kind == "image"
    found, wanted = (audit_cohort(one, kind_named(kind), num_workers=0).to_dict() for one in (there, here))
    assert {**found, "source": ""} == {**wanted, "source": ""}


def test_audit_knows_scans(put: Put, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(noise(8, 8, 4).astype(np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    put(tmp_path / "a.nii.gz", "scans/a.nii.gz")
    kind, listing = list_source(f"s3://{BUCKET}/scans")
    assert (kind, [item["name"] for item in listing.items]) == ("scan", ["a.nii.gz"])
