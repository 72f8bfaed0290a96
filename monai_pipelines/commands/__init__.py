"""One module for each command of ``python -m monai_pipelines``."""
