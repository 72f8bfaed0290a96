"""Arrays in memory: batches equal single items."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from monai_pipelines.data import ArrayDataset, collate_batches, read_arrays
from monai_pipelines.errors import CohortError


def _dataset(shape: tuple[int, ...] = (3, 6, 5), multilabel: bool = False, number: int = 12) -> ArrayDataset:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (number, 4) if multilabel else number)
    images = torch.from_numpy(random.integers(0, 256, (number, *shape), dtype=np.uint8))
    return ArrayDataset(images, labels, [f"i{k}" for k in range(number)])


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 6, 5), (1, 6, 5, 4)])
@pytest.mark.parametrize("multilabel", [False, True])
def test_a_batch_equals_the_items(shape: tuple[int, ...], multilabel: bool) -> None:
    dataset = _dataset(shape, multilabel)
    indices = [5, 0, 11, 5]
    batch = dataset.__getitems__(indices)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].dtype == (torch.float32 if multilabel else torch.int64)
    for row, index in enumerate(indices):
        assert torch.equal(batch["image"][row], dataset.images[index])
        assert batch["label"][row].tolist() == dataset.labels[index].tolist() == dataset.data[index]["label"]
        assert batch["name"][row] == dataset.data[index]["name"] == f"i{index}"
    assert (len(dataset), dataset.skipped) == (12, [])
    assert (set(dataset.data[0]), set(batch)) == ({"name", "label"}, {"name", "label", "image"}), "no patients"


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_loader_gives_every_image_once(num_workers: int) -> None:
    dataset = _dataset()
    batches = list(DataLoader(dataset, 5, shuffle=True, collate_fn=collate_batches, num_workers=num_workers))
    assert [len(batch["image"]) for batch in batches] == [5, 5, 2]
    names = [name for batch in batches for name in batch["name"]]
    assert sorted(names) == sorted(item["name"] for item in dataset.data)
    for batch in batches:
        for name, image, label in zip(batch["name"], batch["image"], batch["label"], strict=True):
            assert torch.equal(image, dataset.images[int(name[1:])])
            assert label == dataset.labels[int(name[1:])]


def test_other_items_are_collated_as_monai_does() -> None:
    items: list[dict[str, Any]] = [
        {
            "image": torch.full((1, 2), float(k)),
            "label": label,
            "name": f"n{k}",
            "shortcut": {"mean": torch.ones(2) * k},
        }
        for k, label in enumerate([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    ]
    batch = pickle.loads(pickle.dumps(collate_batches))(items)
    assert torch.equal(batch["label"], torch.tensor([[0.0, 1, 1], [1, 0, 0]])), "a row for each image"
    assert batch["image"].shape == (2, 1, 2)
    assert batch["name"] == ["n0", "n1"]
    assert torch.equal(batch["shortcut"]["mean"], torch.tensor([[0.0, 0], [1, 1]]))
    assert items[0]["label"] == [0.0, 1.0, 1.0]
    assert collate_batches([{**item, "label": 1} for item in items])["label"].tolist() == [1, 1]
    assert collate_batches([{"image": torch.zeros(1)}])["image"].shape == (1, 1)


def test_shortcuts_of_a_volume_depend_only_on_its_values() -> None:
    flat = _dataset((1, 6, 20))
    deep = ArrayDataset(flat.images.reshape(12, 1, 6, 5, 4), flat.labels)
    for name, feature in flat[7]["shortcut"].items():
        assert torch.equal(deep[7]["shortcut"][name], feature)


def test_shortcuts_of_an_item() -> None:
    item = _dataset()[3]
    assert set(item) == {"name", "label", "image", "shortcut"}
    assert item["image"].shape == (3, 6, 5)
    color = item["shortcut"]["mean color"]
    assert torch.allclose(color, item["image"].float().mean((1, 2)) / 255, atol=1e-5)
    assert "size and file type" not in item["shortcut"], "constant here"
    assert item["shortcut"]["color histogram"].shape == (48,)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), [0, 1], "images must be uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), [0, 1], "images must be uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0, 1, 1], "2 images want as many labels"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), np.zeros((2, 1, 1)), "2 images want as many labels"),
    ],
)
def test_wrong_arrays(images: torch.Tensor, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayDataset(images, labels)


# ---- arrays from files


@pytest.mark.parametrize(
    ("shape", "channels", "wanted"),
    [
        ((2, 6, 5), 1, (2, 1, 6, 5)),
        ((2, 6, 3), 1, (2, 1, 6, 3)),
        ((2, 6, 5, 4), 1, (2, 1, 6, 5, 4)),
        ((2, 6, 5, 3), 3, (2, 3, 6, 5)),
        ((2, 6, 5, 4, 3), 3, (2, 3, 6, 5, 4)),
    ],
)
@pytest.mark.parametrize("name", ["a.npy", "images", "test_images"])
def test_arrays_from_a_file(
    tmp_path: Path, shape: tuple[int, ...], channels: int, wanted: tuple[int, ...], name: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    file = _save(tmp_path, images, name)
    (tmp_path / "notes.txt").touch()
    for source in (file, tmp_path):
        dataset = read_arrays(source, channels)
        assert dataset.images.shape == wanted
        back = dataset.images.numpy()
        np.testing.assert_array_equal(back[:, 0] if channels == 1 else np.moveaxis(back, 1, -1), images)
        assert set(dataset[1]) == {"name", "image", "shortcut"}


def _save(folder: Path, images: np.ndarray, name: str = "a.npy") -> Path:
    if name == "a.npy":
        np.save(folder / name, images)
        return folder / name
    np.savez(folder / "a.npz", **{name: images}, other=np.zeros(3))
    return folder / "a.npz"


@pytest.mark.parametrize(
    ("shape", "dtype", "channels", "message"),
    [
        ((2, 6, 5), "uint8", 3, r"wanted uint8 (N, H, W, 3) or (N, X, Y, Z, 3) for 3 channel(s), got uint8 (2, 6, 5)"),
        ((2, 6, 5, 3), "uint8", 1, r"wanted uint8 (N, H, W) or (N, X, Y, Z) for 1 channel(s), got uint8 (2, 6, 5, 3)"),
        ((2, 6, 5, 1), "uint8", 1, r"for 1 channel(s), got uint8 (2, 6, 5, 1)"),
        ((2, 6, 5, 4), "uint8", 3, r"for 3 channel(s), got uint8 (2, 6, 5, 4)"),
        ((2, 6, 5, 4, 1), "uint8", 1, r"for 1 channel(s), got uint8 (2, 6, 5, 4, 1)"),
        ((6, 5), "uint8", 1, r"got uint8 (6, 5)"),
        ((), "uint8", 3, r"got uint8 ()"),
        ((2, 6, 5), "float32", 1, r"got float32 (2, 6, 5)"),
    ],
)
def test_arrays_of_another_shape_or_type(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, channels: int, message: str
) -> None:
    file = _save(tmp_path, np.zeros(shape, dtype))
    with pytest.raises(CohortError, match=re.escape(message)) as error:
        read_arrays(file, channels)
    assert error.value.subject == str(file)


def test_no_array_to_read(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "lost.npy", Path(__file__)):
        with pytest.raises(CohortError, match=r"wanted a .npy, or an .npz with images or test_images"):
            read_arrays(source, 1)
    _save(tmp_path, np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(CohortError, match="holds neither images nor test_images, but x, other"):
        read_arrays(_save(tmp_path, np.zeros(1), "x"), 1)
    with pytest.raises(CohortError, match=r"wanted one .npy or .npz in the folder, got a.npy, a.npz; name the file"):
        read_arrays(tmp_path, 1)
    for name in ("a.npy", "a.npz"):
        content = (tmp_path / name).read_bytes()
        for length in (0, 50, len(content) - 30):
            (tmp_path / name).write_bytes(content[:length])
            with pytest.raises(CohortError, match="not a NumPy file of plain arrays"):
                read_arrays(tmp_path / name, 1)


def test_an_archive_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    open_file = Path.open

    def keep(path: Path, *args: Any) -> Any:
        opened.append(open_file(path, *args))
        return opened[-1]

    file = _save(tmp_path, np.zeros((2, 4, 4), np.uint8), "images")
    monkeypatch.setattr(Path, "open", keep)
    read_arrays(file, 1)
    assert [stream.closed for stream in opened] == [True]
