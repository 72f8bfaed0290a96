"""Start-up time of a new Python process: the package, its command line and its engines, against torch and MONAI.

    python benchmarks/startup.py [--rounds 15] [--csv benchmarks/results/startup.csv]

Each process starts, imports or prints its help, and ends; methods alternate, and the files are in the disk cache. Our
engines need torch, MONAI and ignite, whose import is most of their time. Medians over rounds are appended to the CSV.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

from harness import arguments, record, timed

METHODS = {
    "import monai_pipelines": ("-c", "import monai_pipelines"),
    "python -m monai_pipelines --help": ("-m", "monai_pipelines", "--help"),
    "import monai_pipelines.engines": ("-c", "import monai_pipelines.engines"),
    "import torch": ("-c", "import torch"),
    "import monai": ("-c", "import monai"),
    "python -m monai.bundle --help": ("-m", "monai.bundle", "--help"),
}
OURS = {
    "import torch": "import monai_pipelines",
    "import monai": "import monai_pipelines.engines",
    "python -m monai.bundle --help": "python -m monai_pipelines --help",
}


def main() -> None:
    args = arguments(__doc__, "startup.csv", rounds=15).parse_args()
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # compiled files are kept, as usual
    start = partial(subprocess.run, env=environment, check=True, capture_output=True)
    methods = {name: partial(start, [sys.executable, *options]) for name, options in METHODS.items()}
    seconds = timed(methods, args.rounds)
    record(args.csv, seconds, lambda name: OURS.get(name, name), {}, "new processes", "torch", "monai", "typer", "rich")


if __name__ == "__main__":
    main()
