from __future__ import annotations

from monai_pipelines.errors import root_cause


def test_the_cause_is_what_a_component_says_not_what_the_system_told_it() -> None:
    try:
        try:
            try:
                raise ConnectionRefusedError(111, "Connection refused")
            except ConnectionRefusedError as error:
                raise OSError("tcp://host:8786: no scheduler answers") from error
        except OSError as error:
            raise RuntimeError("Failed to evaluate ConfigExpression") from error
    except RuntimeError as error:
        assert str(root_cause(error)) == "tcp://host:8786: no scheduler answers"
