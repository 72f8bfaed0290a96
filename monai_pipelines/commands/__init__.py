"""One module for each command of ``python -m monai_pipelines``."""

from __future__ import annotations

from typing import Any

import typer


def read_knobs(options: list[str] | None) -> dict[str, Any]:
    """Values of the options ``--knob name=value`` by name, read as YAML.

    Raises:
        typer.BadParameter: an option that is not name=value.
    """
    import yaml

    if wrong := [text for text in options or () if "=" not in text]:
        raise typer.BadParameter(f"--knob wants name=value, got {', '.join(wrong)}")
    return {text.partition("=")[0]: yaml.safe_load(text.partition("=")[2]) for text in options or ()}
