"""What libraries say about a file may quote its header, and so name a patient: nothing of it is passed on."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_LOGGERS = ("PIL.ImageFile", "PIL.PngImagePlugin", "PIL.TiffImagePlugin", "pydicom", "tifffile") + (
    ("fsspec", "fsspec.http", "s3fs")  # URLs
)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+://)(?:[^\s/'\"]*@)?([^\s?#'\"<>]*)(?:[?#][^\s'\"<>]*)?")
_lock = Lock()
_disabled: list[bool] = []
_num_silencing = 0


def failure(error: BaseException) -> str:
    """A library's error for a message: its type and the system's reason; its text may quote the file.

    Example:
        >>> failure(ValueError("could not convert string to float: 'DOE^JOHN'"))
        'ValueError'
        >>> failure(PermissionError(13, "Permission denied"))
        'PermissionError: Permission denied'
    """
    name, number = type(error).__name__, getattr(error, "errno", None)
    return f"{name}: {os.strerror(number)}" if isinstance(error, OSError) and isinstance(number, int) else name


def without_secrets(text: str) -> str:
    """A text whose URLs have neither user, password nor query, which may be a signature.

    Example:
        >>> without_secrets("--dataset_dir https://jo:secret@host/a/table.csv?token=abc --seed 1")
        '--dataset_dir https://host/a/table.csv --seed 1'
    """
    return _URL.sub(r"\1\2", text)


@contextmanager
def silent_logs() -> Iterator[None]:
    """No logs of the libraries that read images; for any number of threads at once."""
    global _num_silencing
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    with _lock:
        if not _num_silencing:
            _disabled[:] = [logger.disabled for logger in loggers]
            for logger in loggers:
                logger.disabled = True
        _num_silencing += 1
    try:
        yield
    finally:
        with _lock:
            _num_silencing -= 1
            if not _num_silencing:
                for logger, disabled in zip(loggers, _disabled, strict=True):
                    logger.disabled = disabled


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Neither logs nor warnings of libraries; the filter of warnings is shared by all threads."""
    with warnings.catch_warnings(), silent_logs():
        warnings.simplefilter("ignore")
        yield
