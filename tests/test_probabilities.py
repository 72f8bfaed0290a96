from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_pipelines.probabilities import Probabilitiesd, class_logits, probabilities


def test_one_logit() -> None:
    logits = torch.tensor([[0.0], [np.log(3.0)], [-np.log(4.0)]], dtype=torch.float32)
    expected = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.8, 0.2]])
    torch.testing.assert_close(probabilities(logits), expected)
    torch.testing.assert_close(class_logits(logits).softmax(1), expected)
    torch.testing.assert_close(probabilities(logits[1]), expected[1])
    far = torch.tensor([[100.0], [-100.0]], dtype=torch.float64)
    torch.testing.assert_close(probabilities(far), torch.tensor([[0.0, 1], [1, 0]], dtype=torch.float64))
    assert probabilities(far)[0, 0] > 0  # 4e-44, not 1 - 1


def test_multi_class_and_multi_label() -> None:
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0]]))
    assert class_logits(logits) is logits
    torch.testing.assert_close(probabilities(logits), torch.tensor([[1 / 8, 2 / 8, 5 / 8]]))
    torch.testing.assert_close(probabilities(logits, multilabel=True), torch.tensor([[1 / 2, 2 / 3, 5 / 6]]))
    torch.testing.assert_close(probabilities(logits[:, :1], multilabel=True), torch.tensor([[1 / 2]]))


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("shape", [(1,), (4,), (5, 1), (5, 4)])
def test_temperature_divides_the_logits(shape: tuple[int, ...], multilabel: bool) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(probabilities(logits, multilabel, 2.5), probabilities(logits / 2.5, multilabel))
    torch.testing.assert_close(probabilities(logits, multilabel, 1), probabilities(logits, multilabel))
    flat = probabilities(logits, multilabel, 1e9)
    even = 1 / 2 if multilabel or shape[-1] == 1 else 1 / 4
    torch.testing.assert_close(flat, torch.full_like(flat, even))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0 and finite, or None"):
        Probabilitiesd("pred", temperature=temperature)


@pytest.mark.parametrize("temperature", [None, 3.0])
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("shape", [(1,), (3,), (5, 1), (5, 3)])
def test_dictionary_twin(shape: tuple[int, ...], multilabel: bool, temperature: float | None) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = probabilities(logits.double(), multilabel, temperature)
    step = Probabilitiesd(["pred", "missing"], multilabel, temperature, allow_missing_keys=True)
    for value in [logits, logits.numpy(), MetaTensor(logits)]:
        item = {"pred": value, "label": 1}
        out = step(item)
        assert type(out["pred"]) is torch.Tensor
        torch.testing.assert_close(out["pred"], expected)
        assert out["label"] == 1
        assert item["pred"] is value
    with pytest.raises(KeyError, match="missing"):
        Probabilitiesd("missing")({"pred": logits})
