"""MONAI's engines, wired once for every bundle."""

from monai_pipelines.engines.evaluation import evaluate, predict
from monai_pipelines.engines.evaluator import ModelSupervisedEvaluator, TrainedSupervisedEvaluator
from monai_pipelines.engines.run import Run, load_run
from monai_pipelines.engines.trainer import ModelSupervisedTrainer
from monai_pipelines.model import Model

__all__ = [
    "Model",
    "ModelSupervisedEvaluator",
    "ModelSupervisedTrainer",
    "Run",
    "TrainedSupervisedEvaluator",
    "evaluate",
    "load_run",
    "predict",
]
