"""Training-time methods: objectives that any loop can call, and a fine-tuning loop that can be killed and resumed."""

from fxprune.training.basis import BasisScaling, basis_importance
from fxprune.training.data import Splits, load_data
from fxprune.training.distill import Distillation
from fxprune.training.evaluate import evaluate
from fxprune.training.finetune import Finetuned, finetune
from fxprune.training.growing import GrowingL2, Growth, PlainL1
from fxprune.training.hyperspherical import Hyperspherical, TwoSided
from fxprune.training.losses import FeatureMatching, SimilarityPreserving, SoftTargets
from fxprune.training.masked import KeepPruned
from fxprune.training.objectives import Objective, ObjectiveLike
from fxprune.training.recipe import Recipe
from fxprune.training.schedules import ALLR, SLR
from fxprune.training.tpp import TPP
from fxprune.training.trainability import Trainability, trainability

__all__ = [
    "ALLR",
    "SLR",
    "TPP",
    "BasisScaling",
    "Distillation",
    "FeatureMatching",
    "Finetuned",
    "GrowingL2",
    "Growth",
    "Hyperspherical",
    "KeepPruned",
    "Objective",
    "ObjectiveLike",
    "PlainL1",
    "Recipe",
    "SimilarityPreserving",
    "SoftTargets",
    "Splits",
    "Trainability",
    "TwoSided",
    "basis_importance",
    "evaluate",
    "finetune",
    "load_data",
    "trainability",
]
