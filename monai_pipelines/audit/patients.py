"""Patients that file names reveal."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORDS = re.compile(r"(?:^|/)(person|patient|subject|case|sub|pat)([-_]?)\d+", re.IGNORECASE)
_SIDES = re.compile(r"[-_ ](left|right|od|os)(?=[-_ .]|$)", re.IGNORECASE)


def suggested_pattern(names: Sequence[str]) -> str | None:
    r"""A ``patient_pattern`` for file names that look as if several images shared a patient; None for others.

    Example:
        >>> suggested_pattern(["ill/person1_bacteria_1.jpeg", "ill/person1_bacteria_2.jpeg", "normal/IM-0001.jpeg"])
        '(?:^|/)(person\\d+|[^/]*$)'
        >>> suggested_pattern(["10_left.jpeg", "10_right.jpeg"])
        '([^/]+)[-_ ](?:left|right)'
    """
    words = [(found[1] + found[2]) for name in names if (found := _WORDS.search(name))]
    sides = [found[1] for name in names if (found := _SIDES.search(name))]
    patterns = [rf"(?:^|/)({word}\d+|[^/]*$)" for word in dict.fromkeys(words)]
    if len(sides) == len(names):
        patterns.append(f"([^/]+)[-_ ](?:{'|'.join(sorted(set(sides)))})")
    for pattern in patterns:
        patients = [found[1] if (found := re.search(pattern, name)) else None for name in names]
        if None not in patients and len(set(patients)) < len(names):
            return pattern
    return None
