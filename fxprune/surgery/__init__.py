"""The cut, and the proof that it is right."""

from fxprune.surgery.cut import cut
from fxprune.surgery.reference import Masked, Widened
from fxprune.surgery.verify import Verification, relative_error, verify_cut

__all__ = ["Masked", "Verification", "Widened", "cut", "relative_error", "verify_cut"]
