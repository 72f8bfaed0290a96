"""What a file says about a patient is not repeated: by no result, error, traceback, log, warning or library's output.

The bundles' runs are searched in `tests/bundles/conftest.py`.
"""

from __future__ import annotations

import gzip
import logging
import random
import shutil
import subprocess
import sys
import traceback
import warnings
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from monai_pipelines.chains import Chain
from monai_pipelines.data.prepared import PreparedDataset
from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure, silent_logs
from monai_pipelines.transforms import LoadCT, LoadXray
from monai_pipelines.transforms.ct.series import TAGS as CT_TAGS
from monai_pipelines.transforms.image2d.decode import TAGS as IMAGE_TAGS
from tests.personal_data import (
    DATE,
    KEYWORDS,
    MARKER,
    SCANNER,
    UID_ROOT,
    find_in_folder,
    find_markers,
    mark_dicom,
    put,
    value_of,
)
from tests.personal_files import KINDS, write_ct, write_kind, write_xray
from tests.test_fuzz import damage

VALUES = (f"{MARKER}^A", f"1.0{MARKER}", MARKER, UID_ROOT, "1899-12-31")
Said = Callable[[Callable[[], Any]], str]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> Said:
    """All that a call lets out, with every logger at its most talkative."""
    caplog.set_level(logging.DEBUG)

    def said(call: Callable[[], Any]) -> str:
        caplog.clear()
        capfd.readouterr()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = call()
                told = repr(getattr(result, "meta", result))
            except ScanError as error:
                told = "".join(traceback.format_exception(error))
        out = capfd.readouterr()
        return "\n".join((told, caplog.text, out.out, out.err, *(str(warning.message) for warning in caught)))

    return said


def assert_silent(said: Said, call: Callable[[], Any]) -> None:
    text = said(call)
    assert [line for line in text.splitlines() if find_markers(line.encode())] == []


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slices, and two of another series."""
    folder = tmp_path_factory.mktemp("ct")
    healthy = write_ct(folder / "healthy")
    for file in sorted(write_ct(folder / "other", scan_id="other").iterdir())[:2]:
        shutil.copy(file, healthy / f"other-{file.name}")
    return healthy


@pytest.fixture(scope="module")
def xray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xray(tmp_path_factory.mktemp("xray") / "a.dcm")


# ---- damaged values


@pytest.mark.parametrize("tag", [tag for tag in CT_TAGS if tag not in SCANNER])
def test_values_of_a_ct(tag: str, series: Path, said: Said, tmp_path: Path) -> None:
    """Each tag that is read, in one slice of a folder, and in that slice alone."""
    for number, value in enumerate(VALUES):
        scan = shutil.copytree(series, tmp_path / str(number))
        put(scan / "IM0001.dcm", tag, value.encode())
        assert_silent(said, partial(LoadCT(), scan))
        assert_silent(said, partial(LoadCT(), scan / "IM0001.dcm"))


@pytest.mark.parametrize("tag", [tag for tag in IMAGE_TAGS if tag not in SCANNER])
def test_values_of_an_xray(tag: str, xray: Path, said: Said, tmp_path: Path) -> None:
    for value in VALUES:
        file = Path(shutil.copy(xray, tmp_path / "a.dcm"))
        if "Palette" in tag:
            put(file, "PhotometricInterpretation", b"PALETTE COLOR")
        put(file, tag, value.encode())
        assert_silent(said, partial(LoadXray(), file))


@pytest.mark.parametrize("tag", SCANNER)
@pytest.mark.parametrize("value", [f"{MARKER}^A", f"A\x08\x00\x80\x00LO\x08\x00{MARKER}", 65 * "Z"])
def test_scanners_that_are_no_names(tag: str, value: str, series: Path, said: Said, tmp_path: Path) -> None:
    """A person, the element behind a damaged length, or a text."""
    file = Path(shutil.copy(series / "IM0001.dcm", tmp_path / "a.dcm"))
    put(file, tag, value.encode())
    assert "'scanner': ''" in said(lambda: LoadCT()(file))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("syntax", [f"{MARKER}^ZZZZZZZZZ", UID_ROOT], ids=["text", "UID"])
def test_transfer_syntax(syntax: str, compressed: bool, series: Path, said: Said, tmp_path: Path) -> None:
    file = Path(shutil.copy(series / "IM0001.dcm", tmp_path / "a.dcm"))
    wanted = ExplicitVRLittleEndian
    if compressed:
        dataset = pydicom.dcmread(file)
        dataset.compress(wanted := RLELossless, generate_instance_uid=False)
        dataset.save_as(file)
    data = file.read_bytes()
    length = len(wanted) + len(wanted) % 2
    place = data.index(b"\x02\x00\x10\x00UI") + 8
    file.write_bytes(data[:place] + syntax.encode().ljust(length, b"\0")[:length] + data[place + length :])
    assert_silent(said, partial(LoadCT(), file))
    assert_silent(said, partial(LoadXray(), file))


@pytest.mark.parametrize(
    ("tag", "value", "shown"),
    [
        ("Modality", "MR", "wanted a CT slice, got Modality MR"),
        ("Modality", "SMITH", "wanted a CT slice, got another Modality"),
        ("Modality", "", "wanted a CT slice, got no Modality"),
        ("RescaleType", "US", "wanted HU, got US"),
        ("RescaleType", "SMITH", "wanted HU, got another text"),
        ("RescaleSlope", "0,5", "got '0,5'"),
        ("RescaleSlope", "2000-01-31", "got text"),
        ("RescaleSlope", "1.2.3", "got text"),
        ("ImagePositionPatient", "1\\2\\nan", r"got '1\\\\2\\\\nan'"),
    ],
)
def test_codes_and_numbers_are_shown(tag: str, value: str, shown: str, series: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(series / "IM0001.dcm", tmp_path / "a.dcm"))
    put(file, tag, value.encode())
    with pytest.raises(ScanError, match=f"a.dcm: .*{shown}"):
        LoadCT()(file)


@pytest.mark.parametrize(
    ("tag", "value", "shown"),
    [
        ("ConvolutionKernel", "B30f", "series 1 .*, kernel B30f\\)"),
        ("ConvolutionKernel", "SMITH", "series 1 .3 slices every 5 mm\\)"),
        ("SeriesNumber", "12", "series 12 "),
        ("SeriesNumber", "SMITH", "series \\? "),
    ],
)
def test_series_are_named_by_number_and_code(tag: str, value: str, shown: str, series: Path, tmp_path: Path) -> None:
    scan = shutil.copytree(series, tmp_path / "scan")
    for file in scan.glob("IM*"):
        put(file, tag, value.encode())
    with pytest.raises(ScanError, match=f"2 series: .*{shown}"):
        LoadCT(series="error")(scan)


# ---- damaged files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num", [40, pytest.param(3000, marks=pytest.mark.nightly)])
def test_damaged_files(kind: str, num: int, said: Said, tmp_path: Path) -> None:
    """Bytes anywhere in the header, or just before and behind markers, where lengths and types of tags stand."""
    file, read = write_kind(kind, tmp_path)
    whole, draw = file.read_bytes(), random.Random(0)
    places = [at for at in range(len(whole)) if whole.startswith(MARKER.encode(), at)]
    assert places
    assert_silent(said, partial(read, file))
    for number in range(num):
        raw = bytearray(damage(whole[:4000], draw) + whole[4000:])
        for _ in range(3 * (number % 2)):
            at = draw.choice(places) + draw.choice([-12, -8, -6, -4, -2, 8, 10])
            raw[min(max(at, 0), len(raw) - 1)] = draw.randrange(256)
        part = file.with_name(f"{number}-{file.name}")
        part.write_bytes(raw)
        assert_silent(said, partial(read, part))
        part.unlink()


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("nrrd", "type: short", f"type: {MARKER}"),
        ("nrrd", "space directions: ", f"space directions: {MARKER} "),
        ("nrrd", "encoding: ", f"encoding: {MARKER}"),
        ("mha", "ElementType = ", f"ElementType = {MARKER}"),
        ("mha", "ElementSpacing = ", f"ElementSpacing = {MARKER} "),
        ("mha", "ElementDataFile = LOCAL", f"ElementDataFile = {MARKER}.raw"),
        ("mha", "NDims = 3", f"NDims = {MARKER}"),
        ("nii", "n+1", MARKER[:3]),
        ("ome", "<OME ", f"<{MARKER} "),
        ("ome", 'SizeX="', f'SizeX="{MARKER}'),
        ("svs", "MPP = ", f"MPP = {MARKER}"),
        ("svs", "AppMag = 20", f"AppMag = \x8f{MARKER}"),
    ],
)
def test_damaged_header_texts(kind: str, old: str, new: str, said: Said, tmp_path: Path) -> None:
    file, read = write_kind(kind, tmp_path)
    data = file.read_bytes()
    before, found, after = data.partition(old.encode())
    assert found
    text = new.encode("latin-1")
    same_length = kind in ("nii", "ome", "svs")  # where offsets follow
    file.write_bytes(before + text + after[len(text) - len(found) if same_length else 0 :])
    assert_silent(said, partial(read, file))


# ---- errors of others


def _quoting(data: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(f"could not convert string to float: '{MARKER}^A'")


def test_a_steps_own_error_is_named_by_its_type(said: Said, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.nii", tmp_path / "bad.nii"
    for file in (good, bad):
        file.touch()
    items = [{"image": str(file), "label": 0, "patient": file.stem} for file in (good, bad)]
    steps = {"read": lambda data: _quoting(data) if "bad" in data["image"] else {**data, "image": np.zeros((1, 2))}}
    chain = Chain(steps, {"steps": {}, "versions": {}})
    made = []

    def prepare() -> list[str]:
        made.append(PreparedDataset(items, chain, tmp_path / "cache", outputs=["image"], on_error="skip"))
        return [item["skipped"] for item in made[0].skipped]

    text = said(prepare)
    assert "skipped" in text
    assert f"{bad}: ValueError" in text
    assert not find_markers(text.encode())
    steps["read"] = made[0]._preparation.chain.transforms = [_quoting]
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    text = said(lambda: made[0][0])
    assert f"ScanError: {good}: ValueError" in text
    assert not find_markers(text.encode())
    assert not find_markers(repr([path.name for path in tmp_path.rglob("*")]).encode())


def test_failure() -> None:
    assert failure(KeyError(MARKER)) == "KeyError"
    assert failure(OSError(MARKER)) == "OSError"
    assert failure(OSError(MARKER, MARKER)) == "OSError"
    assert failure(OSError(2, MARKER)) == "FileNotFoundError: No such file or directory"


def test_unexpected_errors_of_the_command_line_show_no_values() -> None:
    """typer's traceback prints the values of variables if it is allowed to."""
    code = (
        "import sys, monai_pipelines.__main__ as m\n"
        f"def fails():\n    header = '{MARKER[:4]}' + '{MARKER[4:]}'\n    raise TypeError('unexpected')\n"
        "m.app.command('fails')(fails)\nsys.argv = ['monai_pipelines', 'fails']\nm.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "unexpected" in result.stderr
    assert not find_markers((result.stdout + result.stderr).encode())


def test_logs_return_when_the_last_reader_is_done(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tifffile")
    first, second = silent_logs(), silent_logs()
    first.__enter__()
    second.__enter__()
    logger.error("one")
    first.__exit__(None, None, None)
    logger.error("two")
    second.__exit__(None, None, None)
    logger.error("three")
    assert caplog.messages == ["three"]


# ---- the search itself


def _packed(kind: str) -> bytes:
    out, secret = BytesIO(), f"{MARKER}1"
    if kind == "npz":
        np.savez_compressed(out, names=np.array([secret]))
    elif kind == "png":
        texts = PngInfo()
        texts.add_text("Comment", secret, zip=True)
        Image.new("L", (4, 4)).save(out, "PNG", pnginfo=texts)
    elif kind == "h5 attribute":
        with h5py.File(out, "w") as file:
            file.create_dataset("a", data=np.zeros(3)).attrs["name"] = secret
    elif kind == "h5 dataset":
        with h5py.File(out, "w") as file:
            file.create_dataset("a", data=np.frombuffer(secret.encode(), np.uint8), compression="gzip")
    elif kind == "page":
        return b'<img src="data:image/png;base64,' + b64encode(_packed("png")) + b'">'
    return (
        out.getvalue()
        or {
            "gzip": gzip.compress(secret.encode()),
            "UTF-16": f"x{secret}".encode("utf-16-le"),
            "lower case": secret.lower().encode(),
            "UID": f"{UID_ROOT}.4".encode(),
            "date": DATE.encode(),
        }[kind]
    )


@pytest.mark.parametrize(
    "kind", ["npz", "png", "h5 attribute", "h5 dataset", "page", "gzip", "UTF-16", "lower case", "UID", "date"]
)
def test_markers_are_found(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(_packed(kind))
    assert find_in_folder(tmp_path)
    (tmp_path / "a").write_bytes(bytes(100))
    assert find_in_folder(tmp_path) == []
    (tmp_path / f"{MARKER}.txt").touch()
    assert find_in_folder(tmp_path)


def test_every_attribute_is_marked(tmp_path: Path) -> None:
    file = write_xray(tmp_path / "a.dcm")
    mark_dicom(file)
    dataset = pydicom.dcmread(file)
    for keyword in KEYWORDS:
        assert find_markers(repr(dataset[keyword].value).encode()) or value_of(keyword) in ("117Y", "235959")
