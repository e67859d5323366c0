"""Training-time methods: objectives that any loop can call, and a fine-tuning loop that can be killed and resumed."""

from fxprune.training.data import Splits, load_data
from fxprune.training.distill import Distillation
from fxprune.training.losses import FeatureMatching, SimilarityPreserving, SoftTargets
from fxprune.training.objectives import Objective, ObjectiveLike

__all__ = [
    "Distillation",
    "FeatureMatching",
    "Objective",
    "ObjectiveLike",
    "SimilarityPreserving",
    "SoftTargets",
    "Splits",
    "load_data",
]
