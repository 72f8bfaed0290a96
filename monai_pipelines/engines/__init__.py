"""MONAI's engines, wired once for every bundle."""
