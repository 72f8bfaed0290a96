"""One scan explained: the map lies where the scan lies, and the prediction is that of the inference."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from monai_pipelines import phantoms
from monai_pipelines.errors import ChainMismatchError, ScanError
from monai_pipelines.explain import explain_class
from monai_pipelines.explain.scan import explain_scan, explain_scans
from monai_pipelines.runs import inference_config
from monai_pipelines.transforms import LoadCT

CT, XRAY, DIGITS = "lung_ct_classification", "chest_xray_classification", "medmnist_classification"
SMALL_CT = {
    "size": [24, 24, 24],
    "network_def": {
        "_target_": "monai.networks.nets.resnet10",
        "spatial_dims": 3,
        "n_input_channels": 1,
        "num_classes": 2,
        "conv1_t_stride": 2,
        "bias_downsample": False,
        "widen_factor": 0.0625,
    },
}


def _run(folder: Path, bundle: str, overrides: dict[str, Any], **card: Any) -> Path:
    """A run folder with a checkpoint of random weights, as training leaves it."""
    torch.manual_seed(0)
    config = inference_config(bundle, **overrides)
    network, chain = config.get_parsed_content("network"), config.get_parsed_content("chain")
    configs = folder / "configs"
    configs.mkdir(parents=True)
    for file in (Path(config["bundle_root"]) / "configs").iterdir():
        (configs / file.name).write_bytes(file.read_bytes())
    run = {"command": "python train.py", "config_files": ["train.yaml"], "overrides": overrides}
    (folder / "run.json").write_text(json.dumps(run))
    content = {"model": network.state_dict(), "classes": list(config.get_parsed_content("classes"))}
    torch.save({**content, "chain": chain.describe(), "epoch": 3, **card}, folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM series."""
    table = phantoms.write_lung_ct_cohort(
        tmp_path_factory.mktemp("ct") / "data", 2, matrix=64, slice_mm=8, num_workers=1, progress=False
    )
    return sorted((table.parent / "scans").iterdir())[0]


@pytest.fixture(scope="module")
def ct_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(tmp_path_factory.mktemp("run") / "run", CT, SMALL_CT, threshold=0.2, temperature=2.5)


def _same_grid(map_file: Path, scan: sitk.Image) -> None:
    map_ = sitk.ReadImage(str(map_file))
    assert map_.GetSize() == scan.GetSize()
    np.testing.assert_allclose(map_.GetSpacing(), scan.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(map_.GetOrigin(), scan.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(map_.GetDirection(), scan.GetDirection(), atol=1e-5)


def test_dicom_series(ct_run: Path, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = explain_scan(ct_run, series, tmp_path, class_name="disease")
    assert {file.name for file in tmp_path.iterdir()} == {"explanation.png", "explanation.json", "map.nii.gz"}
    assert summary == json.loads((tmp_path / "explanation.json").read_text())
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    _same_grid(tmp_path / "map.nii.gz", reader.Execute())
    scan = LoadCT()(series)
    map_ = nib.load(tmp_path / "map.nii.gz")
    assert map_.shape == scan.shape[1:]
    np.testing.assert_allclose(map_.affine, scan.affine, atol=1e-4)
    values = map_.get_fdata()
    assert 0 <= values.min() < 0.05
    assert 0.7 < values.max() <= 1

    config = inference_config(ct_run)
    network, image = config.get_parsed_content("network").eval(), config.get_parsed_content("chain")(series)
    network.load_state_dict(torch.load(ct_run / "best.pt", weights_only=True)["model"])
    found = explain_class(network, image.as_tensor()[None], 1)
    peaks = [
        nib.affines.apply_affine(affine, np.unravel_index(map_values.argmax(), map_values.shape))
        for map_values, affine in ((found.map, image.affine.numpy()), (values, map_.affine))
    ]
    assert np.abs(peaks[0] - peaks[1]).max() < 10

    with torch.no_grad():
        prob = (network(image.as_tensor()[None]) / 2.5).softmax(1)[0].tolist()
    assert list(summary["prob"].values()) == pytest.approx(prob, abs=1e-4)
    assert summary["predicted"] == ["disease" if prob[1] >= 0.2 else "healthy"]
    assert summary["explained"] == "disease"
    assert (summary["threshold"], summary["temperature"], summary["epoch"]) == (0.2, 2.5, 3)
    assert (summary["stage"], summary["cells"]) == ("act", [12, 12, 12])
    assert "mm apart" in summary["resolution"]
    printed = capsys.readouterr().out
    assert "temperature 2.5" in printed
    assert f"{prob[1]:.3f}" in printed


def test_oblique_nifti(ct_run: Path, series: Path, tmp_path: Path) -> None:
    scan = LoadCT()(series)
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    flipped = nib.Nifti1Image(scan[0].numpy()[:, ::-1].transpose(2, 0, 1), np.eye(4))
    axes = np.zeros((4, 4))
    axes[:, :3] = scan.affine.numpy()[:, [2, 0, 1]] * [1, 1, -1]
    axes[:, 3] = nib.affines.apply_affine(scan.affine, [0, scan.shape[2] - 1, 0]).tolist() + [1]
    file = tmp_path / "oblique.nii.gz"
    nib.save(nib.Nifti1Image(flipped.get_fdata().astype(np.int16), turn @ axes), file)
    summary = explain_scan(ct_run, file, tmp_path / "out")
    _same_grid(tmp_path / "out" / "map.nii.gz", sitk.ReadImage(str(file)))
    assert (summary["image"], summary["checkpoint"]) == ("oblique.nii.gz", str(ct_run / "best.pt"))
    assert str(tmp_path) not in json.dumps({**summary, "checkpoint": None})


@pytest.fixture(scope="module")
def xray_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = {"size": [64, 64], "network_def": {**SMALL_CT["network_def"], "spatial_dims": 2}}  # type: ignore[dict-item]
    return _run(tmp_path_factory.mktemp("run") / "run", XRAY, overrides)


def test_image_has_a_map_of_its_size(xray_run: Path, tmp_path: Path) -> None:
    """64 columns for 160, 48 rows between two bars: the map comes back to the 120 rows."""
    pixels = np.random.default_rng(0).integers(0, 60, (120, 160)).astype(np.uint8)
    pixels[70:110, 20:70] = 250
    Image.fromarray(pixels).save(tmp_path / "film.png")
    summary = explain_scan(xray_run, tmp_path / "film.png", tmp_path / "out", stage="act")
    map_ = np.asarray(Image.open(tmp_path / "out" / "map.png"))
    assert map_.shape == (120, 160)
    assert map_.dtype == np.uint8
    assert summary["predicted"] == [max(summary["prob"], key=summary["prob"].get)] == [summary["explained"]]
    assert (summary["threshold"], summary["temperature"], summary["map"]) == (None, None, "map.png")
    config = inference_config(xray_run)
    network, image = config.get_parsed_content("network").eval(), config.get_parsed_content("chain")
    network.load_state_dict(torch.load(xray_run / "best.pt", weights_only=True)["model"])
    index = list(summary["prob"]).index(summary["explained"])
    found = explain_class(network, image(tmp_path / "film.png").as_tensor()[None], index, stage="act")
    expected = Image.fromarray(found.map[8:56]).resize((160, 120), Image.Resampling.BILINEAR)
    inner = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(map_[inner] / 255, np.asarray(expected)[inner], atol=0.02)


def test_image_in_an_array(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", DIGITS, {"flag": "pneumoniamnist"})
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28)).astype(np.uint8)
    np.save(tmp_path / "one.npy", images[:1])
    summary = explain_scan(run, tmp_path / "one.npy", tmp_path / "out", "gradcam++")
    assert summary["cells"] == [7, 7]
    assert np.asarray(Image.open(tmp_path / "out" / "map.png")).shape == (28, 28)
    np.save(tmp_path / "two.npy", images)
    with pytest.raises(ValueError, match="wanted one image, got 2"):
        explain_scan(run, tmp_path / "two.npy", tmp_path / "out")


def test_many_images(
    xray_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Each in a folder of its name; what cannot be used is named and left out."""
    films = tmp_path / "films"
    for name, value in (("a/1.png", 50), ("b/1.png", 200)):
        (films / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((40, 60), value, np.uint8)).save(films / name)
    (films / "b" / "2.png").write_text("no picture")
    summaries = explain_scans(xray_run, films, tmp_path / "out", stage="act")
    assert [summary["image"] for summary in summaries] == ["a/1.png", "b/1.png"]
    printed = capsys.readouterr().out
    for summary in summaries:
        assert json.loads((tmp_path / "out" / summary["image"] / "explanation.json").read_text()) == summary
        assert (tmp_path / "out" / summary["image"] / "explanation.png").is_file()
    assert all(f"{summary['image']}: {summary['words']}" in printed for summary in summaries)
    assert "skipped b/2.png: not PNG" in caplog.text
    shutil.rmtree(films / "a")
    (films / "b" / "1.png").write_text("no picture")
    with pytest.raises(ScanError, match="none of 2 can be used"):
        explain_scans(xray_run, films, tmp_path / "out", stage="act")


def test_bundle_with_a_checkpoint(ct_run: Path, series: Path, tmp_path: Path) -> None:
    with pytest.raises(ChainMismatchError, match=r"\[24, 24, 24\] there, \[128, 128, 128\] here"):
        explain_scan(CT, series, tmp_path, checkpoint=ct_run / "best.pt")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        explain_scan(CT, series, tmp_path, checkpoint=tmp_path / "none.pt")


def test_what_cannot_be_explained_is_an_error(ct_run: Path, series: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no class 'diseased' \(did you mean 'disease'\?\)"):
        explain_scan(ct_run, series, tmp_path, class_name="diseased")
    with pytest.raises(ValueError, match=r"wanted one image, got \d, as phantom-"):
        explain_scan(ct_run, series.parent, tmp_path)
    with pytest.raises(ValueError, match="wanted the folder of a run or of a bundle"):
        explain_scan(tmp_path / "nothing", series, tmp_path)
    (tmp_path / "text.nii.gz").write_text("no scan")
    with pytest.raises(ScanError, match=r"text\.nii\.gz"):
        explain_scan(ct_run, tmp_path / "text.nii.gz", tmp_path)
    with pytest.raises(ValueError, match="stage must be one of act"):
        explain_scan(ct_run, series, tmp_path, stage="layer9")
    assert not (tmp_path / "explanation.json").exists()


def test_missing_file_is_reported_in_one_line(
    ct_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MONAI wraps the error of a component in others."""
    arguments = ["explain", str(ct_run), str(tmp_path / "lost.nii.gz"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["monai_pipelines", *arguments])
    with pytest.raises(SystemExit) as end:
        import_module("monai_pipelines.__main__").main()
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'lost.nii.gz'}: ")


def test_weights_of_another_network_are_listed_in_short(ct_run: Path, series: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(ct_run / "best.pt", weights_only=True)
    weights = checkpoint["model"]
    weights["conv1.weight"] = weights["conv1.weight"][:1]
    checkpoint["model"] = {**weights, **{f"another.{k}": torch.zeros(1) for k in range(300)}}
    torch.save(checkpoint, tmp_path / "other.pt")
    message = r"; 301 are missing, unexpected or of another shape: conv1.weight, another.0, another.1 \.\.\.$"
    with pytest.raises(ValueError, match=message):
        explain_scan(ct_run, series, tmp_path, checkpoint=tmp_path / "other.pt")
