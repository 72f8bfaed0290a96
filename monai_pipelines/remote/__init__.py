"""Images, tables and results in stores, read and written as if they were on this machine."""

from monai_pipelines.remote.place import (
    File,
    Place,
    Remote,
    Source,
    Staged,
    as_place,
    each,
    entry,
    file_stats,
    files_below,
    local,
    read_blocks,
    read_start,
    results_folder,
    size_of,
    unlink,
    whole_write,
)
from monai_pipelines.remote.scratch import ScratchError
from monai_pipelines.remote.store import MissingError

__all__ = [
    "File",
    "MissingError",
    "Place",
    "Remote",
    "ScratchError",
    "Source",
    "Staged",
    "as_place",
    "each",
    "entry",
    "file_stats",
    "files_below",
    "local",
    "read_blocks",
    "read_start",
    "results_folder",
    "size_of",
    "unlink",
    "whole_write",
]
