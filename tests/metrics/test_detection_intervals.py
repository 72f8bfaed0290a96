from __future__ import annotations

import pytest

from monai_pipelines.metrics import average_precision, froc
from tests.metrics.detection_studies import clustered_images

NAMES = ("sensitivity_at_1", "cpm", "ap50")


def _evaluated(images, key, num_resamples, seed=0):
    options = {"num_resamples": num_resamples, "seed": seed}
    return {
        **froc(*images, **options)[key],
        **average_precision(*images, ious=[0.5], sizes={}, **options)[key],
    }


@pytest.mark.parametrize(
    ("num_studies", "num_patients", "low", "high"),
    [
        (20, 50, 0.8, 1),
        pytest.param(1000, 50, 0.92, 0.97, marks=pytest.mark.nightly),
        pytest.param(1000, 100, 0.92, 0.97, marks=pytest.mark.nightly),
    ],
)
def test_intervals_hold_the_truth(num_studies, num_patients, low, high):
    """Of studies of 1 to 3 images per patient; with 1,000 studies a coverage of 95% is accurate to +-1.4%."""
    truth = _evaluated(clustered_images(0, 20 * num_studies), "metrics", 0)
    covered = dict.fromkeys(NAMES, 0)
    for study in range(1, num_studies + 1):
        intervals = _evaluated(clustered_images(study, num_patients), "intervals", 300, study)
        for name in NAMES:
            covered[name] += intervals[name][0] <= truth[name] <= intervals[name][1]
    for name in NAMES:
        assert low <= covered[name] / num_studies <= high, covered


def test_correlated_images_widen_the_interval():
    images = clustered_images(7, 60)
    copies = [part * 10 for part in images[:2]]
    once = _evaluated(images, "intervals", 300)
    by_patient = _evaluated((*copies, images.patients * 10), "intervals", 300)
    by_image = _evaluated(copies, "intervals", 300)
    for name in NAMES:
        assert by_patient[name] == pytest.approx(once[name], abs=0.01), name
        assert by_patient[name][1] - by_patient[name][0] > 2.5 * (by_image[name][1] - by_image[name][0]), name
