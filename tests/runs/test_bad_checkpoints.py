from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_pipelines.model import class_names
from monai_pipelines.runs.checkpoint import read_checkpoint


def test_files_that_are_no_checkpoint_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    torch.save({"model": {}, "classes": ["a"], "chain": {}}, file)
    whole = file.read_bytes()
    cases = {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n": "a pointer of Git LFS",
        whole[: len(whole) // 2]: "no checkpoint, or damaged",
        b"": "no checkpoint, or damaged",
        b"text": "no checkpoint, or damaged",
    }
    for content, message in cases.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"best.pt: {message}"):
            read_checkpoint(file, None)  # type: ignore[arg-type]
    for content in ({"conv.weight": torch.zeros(1)}, torch.zeros(2), {"state_dict": {}}):
        torch.save(content, file)
        with pytest.raises(ValueError, match=r"best.pt: weights alone, without the classes"):
            read_checkpoint(file, None)  # type: ignore[arg-type]


def test_class_names() -> None:
    assert class_names(["a", 0, 1.5]) == ("a", "0", "1.5")
    with pytest.raises(ValueError, match=r"classes: wanted names, got \[False, True\].*quote them"):
        class_names([False, True])
