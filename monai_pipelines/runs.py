"""What a run needs before it starts, and what it leaves so that it can be run again."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from monai_pipelines.chains import Chain

_PACKAGES = (
    *("monai-pipelines", "monai", "torch", "pytorch-ignite"),
    *("numpy", "scipy", "scikit-learn", "SimpleITK", "pydicom", "nibabel"),
)


def start_run(bundle_root: str | PathLike[str]) -> None:
    """Check ``bundle_root``, and have errors that the user can mend told on the last line, below the traceback.

    Raises:
        SystemExit: no ``configs/metadata.json`` below it.
    """
    if not (Path(bundle_root) / "configs" / "metadata.json").is_file():
        raise SystemExit(
            f"bundle_root {str(bundle_root)!r} is no bundle, {Path(bundle_root).resolve()} has no configs/metadata.json: "
            "run from the bundle's folder or add --bundle_root FOLDER"
        )
    sys.excepthook = _tell_cause_last


def record_run(
    output_dir: str | PathLike[str],
    bundle_root: str | PathLike[str],
    chain: Chain,
    seed: int,
    table: str | PathLike[str],
    **settings: Any,
) -> dict[str, Any]:
    """Save what is needed to run again: ``output_dir/run.json`` and the bundle's configs in ``output_dir/configs``.

    Args:
        output_dir: folder of the run.
        bundle_root: the bundle.
        chain: the fixed chain; its description and fingerprint are recorded.
        seed: of the run.
        table: the table of scans; its SHA-256 is recorded.
        settings: anything else, plain data.

    Returns:
        the content of ``run.json``: ``command``, ``seed``, ``table``, ``table_sha256``, ``fingerprint``, ``chain``,
        ``versions``, ``settings``.

    Raises:
        FileNotFoundError: no such table.
    """
    if not Path(table).is_file():
        raise FileNotFoundError(
            f"{table}: no such table of scans; name its folder with --dataset_dir, or it with --table"
        )
    run = {
        "command": shlex.join(["python", *(["-m", "monai.bundle"] if "monai" in sys.argv[0] else []), *sys.argv[1:]]),
        "seed": seed,
        "table": str(table),
        "table_sha256": hashlib.sha256(Path(table).read_bytes()).hexdigest(),
        "fingerprint": chain.fingerprint(),
        "chain": chain.describe(),
        "versions": {"python": platform.python_version(), **{p: v for p in _PACKAGES if (v := _version(p))}},
        "settings": settings,
    }
    configs = Path(output_dir) / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    for file in sorted((Path(bundle_root) / "configs").iterdir()):
        if file.is_file():
            shutil.copyfile(file, configs / file.name)
    (Path(output_dir) / "run.json").write_text(json.dumps(run, indent=1))
    return run


def _tell_cause_last(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """MONAI wraps what a component raises; say the first cause once more, at the end."""
    sys.__excepthook__(kind, error, trace)
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if cause is not error:
        sys.stderr.write(f"\nerror: {cause}\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # this package, run from a checkout without an install
        return None
