"""What a run needs before it starts, and what it leaves so that it can be run again."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle import run as monai_run

from monai_pipelines.chains import Chain, did_you_mean

logger = logging.getLogger(__name__)

_FLAGS = ("resume", "download")  # what reads them takes true and false as text, too
_PACKAGES = (
    *("monai-pipelines", "monai", "torch", "pytorch-ignite"),
    *("numpy", "scipy", "scikit-learn", "SimpleITK", "pydicom", "nibabel"),
)


def start_run(bundle_root: str | PathLike[str]) -> None:
    """Check the command line, and have errors that the user can mend told on the last line, below the traceback.

    Raises:
        SystemExit: ``bundle_root`` is no bundle, or an override names nothing that the configs have.
    """
    if not (Path(bundle_root) / "configs" / "metadata.json").is_file():
        found = f"{str(bundle_root)!r} ({Path(bundle_root).resolve()}) has no configs/metadata.json"
        raise SystemExit(f"bundle_root {found}: run from the bundle's folder or add --bundle_root FOLDER")
    sys.excepthook = _tell_cause_last
    if Path(sys.argv[0]).parent.name == "bundle":
        _check_overrides(Path(bundle_root) / "configs")


def record_run(
    output_dir: str | PathLike[str],
    bundle_root: str | PathLike[str],
    chain: Chain,
    augmentation: Chain | None,
    split: Mapping[str, Any],
    source: str | PathLike[str],
) -> dict[str, Any]:
    """Save what is needed to run again: ``output_dir/run.json`` and the bundle's configs in ``output_dir/configs``.

    Args:
        output_dir: folder of the run.
        bundle_root: the bundle.
        chain, augmentation: the fixed and the random chain; their descriptions are recorded.
        split: `split_card` of the data.
        source: where the data come from.

    Returns:
        the content of ``run.json``: ``command``, ``seed``, ``split_fractions``, ``data_sha256``, ``source``,
        ``fingerprint`` (of ``chain``), ``chain``, ``augmentation``, ``versions``.
    """
    run = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        **{name: value for name, value in split.items() if name != "seen"},
        "source": str(source),
        "fingerprint": chain.fingerprint(),
        "chain": chain.describe(),
        "augmentation": augmentation.describe() if augmentation else None,
        "versions": {"python": platform.python_version(), **{p: v for p in _PACKAGES if (v := _version(p))}},
    }
    configs = Path(output_dir) / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    for file in {*(Path(bundle_root) / "configs").iterdir(), *_named_configs()}:
        if file.is_file():
            shutil.copyfile(file, configs / file.name)
    (Path(output_dir) / "run.json").write_text(json.dumps(run, indent=1))
    return run


def split_card(seed: int, split_fractions: Sequence[float], cohort: Any) -> dict[str, Any]:
    """What a split is made from and who has been seen in training, to be stored with the weights.

    Args:
        seed, split_fractions: of the split.
        cohort: with ``train`` and ``validation`` (datalists or datasets) and a ``digest``.

    Returns:
        ``seed``, ``split_fractions``, ``data_sha256``, and ``seen``: hashes of the names and patients of the training
        and validation data.
    """
    return {
        "seed": seed,
        "split_fractions": [float(f) for f in split_fractions],
        "data_sha256": cohort.digest,
        "seen": sorted(_hashes(cohort.train) | _hashes(cohort.validation)),
    }


def check_split(checkpoint: Mapping[str, Any], split: Mapping[str, Any], cohort: Any) -> None:
    """Check that nobody is tested on whom the training has seen.

    Args:
        checkpoint: of the run, as `monai_pipelines.checkpoints.load_checkpoint` returns it.
        split: `split_card` of the evaluation.
        cohort: of the evaluation, with ``test``.

    Raises:
        ValueError: test images, or images of the same patients, were trained on or chose the epoch.
    """
    then = checkpoint["split"]
    if then is None:
        logger.warning("the checkpoint does not tell what it was trained on: make sure that no test patient was")
        return
    seen = _hashes(cohort.test).intersection(then["seen"])
    if seen:
        told = [f"{n} {then[n]} there, {split[n]} here" for n in ("seed", "split_fractions") if then[n] != split[n]]
        raise ValueError(
            f"{len(seen)} names or patients of the test data have been seen in training; evaluate with the data, seed, "
            f"split_fractions and patient_pattern of the training ({'; '.join(told) or 'the data differ'})"
        )


def _hashes(part: Any) -> set[str]:
    """Of the name and the patient of each item of a datalist or dataset."""
    items = getattr(part, "data", part)
    names = {f"{key}:{item[key]}" for item in items for key in ("name", "patient") if key in item}
    return {hashlib.sha256(name.encode()).hexdigest()[:16] for name in names}


def _named_configs() -> set[Path]:
    """The config files that the command line names."""
    return {Path(name) for text in sys.argv for name in re.findall(r"[^\s'\"\[\],=]+\.(?:ya?ml|json)", text)}


def _check_overrides(configs: Path) -> None:
    """End the program on an override of nothing: MONAI takes a misspelt one without a word."""
    known = {*inspect.signature(monai_run).parameters}
    for file in _named_configs() or configs.glob("*.yaml"):
        known |= {str(key).partition("::")[0] for key in ConfigParser.load_config_file(file)}
    for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if not argument.startswith("--"):
            continue
        name = re.split(r"=|::|#", argument[2:])[0]
        if name not in known:
            raise SystemExit(f"{argument}: nothing in the configs is called {name!r}{did_you_mean(name, known)}")
        value = argument.partition("=")[2] or following
        if value in ("true", "false") and name not in _FLAGS:
            raise SystemExit(f"{argument} {value}: this would be a text; write {value.capitalize()}")


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
