from __future__ import annotations

from monai_pipelines.errors import root_cause


def test_the_cause_is_what_a_component_says_not_what_the_system_told_it() -> None:
    said = OSError("tcp://host:8786: no scheduler answers")
    said.__cause__ = ConnectionRefusedError(111, "Connection refused")
    wrapped = RuntimeError("Failed to evaluate ConfigExpression")
    wrapped.__cause__ = said
    assert root_cause(wrapped) is said
