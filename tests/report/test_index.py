from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.report.index import write_index


def _run(folder: Path, auc: float | None, **more: Any) -> None:
    folder.mkdir(parents=True)
    metrics = {
        **{"num_scans": 1200, "num_patients": 60, "shortcut": {"roc_auc": 0.6}, "intervals": {}, "threshold": 0.25},
        **{"metrics": {"roc_auc": auc, "accuracy": 0.75}, "run": {"seed": 7, "fingerprint": "f00d"}},
        **more,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "report.html").touch()


def _lines(page: str) -> list[list[str]]:
    """Cells of each line as text."""
    body = page.partition("<tbody>")[2].partition("</tbody>")[0]
    cells = [re.findall(r"<t[hd] .*?>(.*?)</t[hd]>", row, re.S) for row in body.split("<tr>")[1:]]
    return [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def test_every_run_is_a_line(tmp_path: Path) -> None:
    _run(tmp_path / "lungs" / "seed-0", 0.9, intervals={"roc_auc": [0.85, 0.94]})
    _run(tmp_path / "x & y", None, num_patients=None, shortcut=None, run={}, threshold=[0.4, 0.5], members=[{}] * 3)
    (tmp_path / "lungs" / "seed-0" / "evaluation.json").write_text('{"title": "Lungs <CT>"}')
    (tmp_path / "lungs" / "seed-0" / "configs").mkdir()
    (tmp_path / "lungs" / "seed-0" / "configs" / "metadata.json").write_text('{"name": "Lung CT classification"}')
    file = write_index(tmp_path)
    assert file == tmp_path / "index.html"
    page = file.read_text()
    assert _lines(page) == [
        [
            *("lungs/seed-0 Lungs &lt;CT&gt;", "Lung CT classification", "7", "one", "1,200 60 patients"),
            *("0.900 0.850 to 0.940", "0.750", "n/a", "0.600", "0.250", "f00d"),
        ],
        [
            *("x &amp; y x &amp; y", "n/a", "n/a", "ensemble of 3", "1,200", "n/a"),
            *("0.750", "n/a", "n/a", "one a class", "n/a"),
        ],
    ]
    assert re.findall('href="(.*?)"', page) == ["lungs/seed-0/report.html", "x%20%26%20y/report.html"]
    assert not re.search(r'(src|href)="[a-z]+:', page)


def test_what_is_sorted_by(tmp_path: Path) -> None:
    _run(tmp_path / "a", None)
    page = write_index(tmp_path).read_text()
    head = re.findall(r'<button type="button">(.*?)</button>', page)
    values = re.findall('data-value="(.*?)"', page)
    assert dict(zip(head, values, strict=True)) == {
        **{
            "Run": "a",
            "Bundle": "",
            "Seed": "7",
            "Networks": "1",
            "Tested on": "1200",
            "ROC AUC": "",
            "Accuracy": "0.75",
        },
        **{"ECE": "", "Shortcut": "0.6", "Threshold": "0.25", "Chain": "f00d"},
    }


def test_runs_that_cannot_be_told_are_listed_with_the_reason(tmp_path: Path) -> None:
    _run(tmp_path / "good", 0.9)
    for name in ("cut", "list", "old", "page"):
        _run(tmp_path / name, 0.9)
    (tmp_path / "cut" / "metrics.json").write_text('{"metrics": ')
    (tmp_path / "list" / "metrics.json").write_text("[]")
    (tmp_path / "old" / "metrics.json").write_text('{"num_scans": 3}')
    (tmp_path / "page" / "report.html").unlink()
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "run.json").write_text("{}")
    page = write_index(tmp_path).read_text()
    assert len(_lines(page)) == 1
    found = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', page))
    assert found.pop("cut").startswith("metrics.json is no JSON: ")
    assert found == {
        "list": "metrics.json: wanted a mapping, got list",
        "old": "metrics.json has no &#39;shortcut&#39;",
        "page": "no report.html: run the evaluation again",
        "training": "not evaluated yet",
    }


def test_broken_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    page = write_index(tmp_path).read_text()
    assert "0 evaluated runs" in page
    assert "<script>" not in page


def test_a_folder_without_runs_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run in it"):
        write_index(tmp_path)


def test_written_again_it_is_the_same(tmp_path: Path) -> None:
    for name in ("b", "a"):
        _run(tmp_path / name, 0.9)
    first = write_index(tmp_path).read_bytes()
    assert write_index(tmp_path).read_bytes() == first
