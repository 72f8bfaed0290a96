"""A corrupt image among many: skipped, or the only problem of one error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_pipelines import load_chain
from monai_pipelines.data import PreparedSplits, read_images
from monai_pipelines.errors import CohortError


@pytest.mark.parametrize("number", [500, pytest.param(5000, marks=pytest.mark.nightly)])
def test_one_corrupt_image_among_many(number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(number):
            Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)).save(tmp_path / name / f"{k}.png")
    bad = tmp_path / "b" / "432.png"
    bad.write_bytes(bad.read_bytes()[:-25])
    cohort, chain = read_images(tmp_path), load_chain("image2d", steps={"resize": None, "normalize": None})

    with pytest.raises(CohortError, match=f"1 of {2 * number} cannot be used: 1 problem") as error:
        _ = PreparedSplits(cohort, chain, cache_dir=None, num_workers=0).test
    (problem,) = error.value.problems
    assert problem.startswith(f"{bad}: unreadable, truncated?")

    splits = PreparedSplits(cohort, chain, cache_dir=None, on_error="skip", num_workers=0)
    parts = [splits.train, splits.validation, splits.test]
    (skipped,) = [item for part in parts for item in part.skipped]
    assert (skipped["image"], skipped["name"]) == (str(bad), "b/432.png")
    assert sum(map(len, parts)) == 2 * number - 1
    assert str(bad) not in {item["image"] for part in parts for item in part.data}
    assert [message for message in caplog.messages if "skipped" in message] == [f"skipped {bad}: {skipped['skipped']}"]
