"""Two detectors on the same images."""

from __future__ import annotations

import numpy as np
import pytest

from monai_pipelines.metrics import Detections, compare_detections, detection_metrics, froc
from tests.metrics.detection_studies import Images, clustered_images

NUM = 400


@pytest.fixture(scope="module")
def study() -> Images:
    return clustered_images(0, num_patients=60)


@pytest.fixture(scope="module")
def worse(study: Images) -> list[Detections]:
    """The same detector with noisier scores."""
    rng = np.random.default_rng(1)
    return [found._replace(scores=found.scores + rng.normal(0, 1.5, len(found.scores))) for found in study.detections]


def test_values_are_those_of_each_detector(study: Images, worse: list[Detections]) -> None:
    compared = compare_detections(worse, study.detections, study.lesions, study.patients, num_resamples=2)
    for key, found in (("a", worse), ("b", study.detections)):
        metrics = detection_metrics(found, study.lesions, study.patients, num_resamples=0)["metrics"]
        assert compared.keys() == metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_equal(compared[name][key], np.nan if value is None else value)


def test_the_interval_is_that_of_a_paired_bootstrap_of_patients(study: Images, worse: list[Detections]) -> None:
    row = compare_detections(worse, study.detections, study.lesions, study.patients, num_resamples=NUM)["cpm"]
    rng = np.random.default_rng(2)
    patients, differences = np.array(study.patients), []
    for _ in range(NUM):
        drawn = rng.integers(patients.max() + 1, size=patients.max() + 1)
        images = np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])
        lesions = [study.lesions[k] for k in images]
        of_a, of_b = (
            froc([found[k] for k in images], lesions, num_resamples=0)["metrics"]["cpm"]
            for found in (worse, study.detections)
        )
        differences.append(of_b - of_a)
    assert (row["high"] - row["low"]) / 4 == pytest.approx(np.std(differences), rel=0.12)
    assert (row["low"] + row["high"]) / 2 == pytest.approx(row["difference"]) == pytest.approx(row["b"] - row["a"])
    assert row["low"] > 0


def test_swapped_and_equal_detectors(study: Images, worse: list[Detections]) -> None:
    options = {"groups": study.patients, "num_resamples": 50}
    there = compare_detections(worse, study.detections, study.lesions, **options)["ap50"]
    back = compare_detections(study.detections, worse, study.lesions, **options)["ap50"]
    assert (there["low"], there["p"]) == (pytest.approx(-back["high"]), pytest.approx(back["p"]))
    same = compare_detections(worse, worse, study.lesions, **options)["ap50"]
    assert (same["low"], same["high"], same["p"]) == (0, 0, 1)
