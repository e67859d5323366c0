"""Training-time methods: objectives that any loop can call, and a fine-tuning loop that can be killed and resumed."""

from fxprune.training.basis import BasisScaling, basis_importance
from fxprune.training.data import Splits, load_data
from fxprune.training.distill import Distillation
from fxprune.training.evaluate import evaluate
from fxprune.training.finetune import Finetuned, finetune
from fxprune.training.losses import FeatureMatching, SimilarityPreserving, SoftTargets
from fxprune.training.objectives import Objective, ObjectiveLike
from fxprune.training.recipe import Recipe
from fxprune.training.schedules import ALLR, SLR

__all__ = [
    "ALLR",
    "SLR",
    "BasisScaling",
    "Distillation",
    "FeatureMatching",
    "Finetuned",
    "Objective",
    "ObjectiveLike",
    "Recipe",
    "SimilarityPreserving",
    "SoftTargets",
    "Splits",
    "basis_importance",
    "evaluate",
    "finetune",
    "load_data",
]
