"""The cut, and the proof that it is right."""

from fxprune.runner import Runner as Widened
from fxprune.surgery.compensate import Compensation, compensation_of
from fxprune.surgery.cut import cut, cut_with
from fxprune.surgery.kept import Kept, removal_of
from fxprune.surgery.reference import Masked
from fxprune.surgery.verify import Verification, relative_error, verify_cut, verify_with

__all__ = [
    "Compensation",
    "Kept",
    "Masked",
    "Verification",
    "Widened",
    "compensation_of",
    "cut",
    "cut_with",
    "relative_error",
    "removal_of",
    "verify_cut",
    "verify_with",
]
