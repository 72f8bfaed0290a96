"""Command line: ``python -m monai_pipelines``."""

from __future__ import annotations

import sys

import typer

from monai_pipelines.commands import (
    audit,
    bundles,
    cache,
    compare,
    evaluate,
    explain,
    export,
    features,
    phantoms,
    predict,
    prepare,
    report,
    run,
    show,
    status,
    sweep,
)
from monai_pipelines.errors import error_text

app = typer.Typer(
    help="MONAI pipelines that classify medical images and detect lesions in them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they hold headers
)
for command in (
    *(show.show, bundles.bundles, audit.audit, predict.predict, evaluate.evaluate, explain.explain),
    *(report.report, compare.compare, export.export),
    *(prepare.prepare, features.features, status.status, sweep.sweep, cache.cache),
):
    app.command()(command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run.run)
app.add_typer(phantoms.app, name="phantoms")


def main() -> None:
    """Run the command line; errors that the user can mend are printed without a traceback."""
    try:
        app()
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        cause: BaseException = error
        while isinstance(cause, RuntimeError) and cause.__cause__ is not None:  # MONAI wraps what a component raises
            cause = cause.__cause__
        if not isinstance(cause, (ValueError, KeyError, OSError)):
            raise
        typer.secho(f"error: {error_text(cause)}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
