"""Errors a user can act on: each names the subject, what was wanted, what came and the way out."""

from __future__ import annotations

from collections.abc import Sequence

from monai_pipelines.privacy import without_secrets


def error_text(error: BaseException) -> str:
    """The text of an error, without the quotes that Python puts around that of a KeyError.

    Example:
        >>> error_text(KeyError("no column 'sex'"))
        "no column 'sex'"
    """
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def root_cause(error: BaseException) -> BaseException:
    """What a component raised: MONAI wraps it in RuntimeErrors. Its own cause, such as a system's error, says less."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


class ScanError(ValueError):
    """A scan that cannot be used.

    Args:
        path: the file or folder, as the caller named it; of a URL neither user, password nor query are kept.
        reason: what was wanted, what came, and the way out.
    """

    def __init__(self, path: object, reason: str) -> None:
        self.path, self.reason = without_secrets(str(path)), reason
        super().__init__(self.path, reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DamagedCheckpointError(ValueError):
    """A file that is not a checkpoint, or a damaged one."""


_MOST_SHOWN = 60


class CohortError(ValueError):
    """A table or cohort with problems; the message lists them, of very many the first and the last.

    Args:
        subject: the table or cohort.
        problems: one line each.
    """

    def __init__(self, subject: object, problems: Sequence[str]) -> None:
        self.subject, self.problems = without_secrets(str(subject)), list(problems)
        super().__init__(self.subject, self.problems)

    def __str__(self) -> str:
        shown, more = self.problems, len(self.problems) - _MOST_SHOWN
        if more > 0:
            shown = [*shown[: _MOST_SHOWN - 5], f"... {more:,} more ...", *shown[-5:]]
        return "\n  - ".join([f"{self.subject}: {len(self.problems)} problem(s)", *shown])


class ChainMismatchError(ValueError):
    """A transform chain differs from the one a model was trained with.

    Args:
        subject: where the other chain comes from.
        differences: one line each.
    """

    def __init__(self, subject: str, differences: Sequence[str]) -> None:
        super().__init__(subject, list(differences))
        self.subject, self.differences = subject, list(differences)

    def __str__(self) -> str:
        head = (
            f"{self.subject}: made with another transform chain; use the chain it was made with, or train again. The "
            "training's overlays and overrides belong to evaluation and inference too: RUN/run.json holds its command"
        )
        return "\n  - ".join([head, *self.differences])
