"""The passes that ship with fxprune: one file each, and none imports another.

``PASSES`` has them by name.
"""

if __name__ != "fxprune.passes":
    raise ImportError(
        "import this package as fxprune.passes (pyproject.toml maps passes/ there); under another name there would be "
        "two copies of every pass"
    )

from fxprune.passes.calibrate_batchnorm import CalibrateBatchNorm
from fxprune.passes.decompose_basis import DecomposeBasis
from fxprune.passes.fuse_batchnorm import FuseBatchNorm
from fxprune.passes.linearize_activations import LinearizeActivations
from fxprune.passes.merge_basis import MergeBasis
from fxprune.passes.over_parameterize import OverParameterize
from fxprune.passes.prune_channels import PruneChannels
from fxprune.passes.prune_weights import PruneWeights
from fxprune.passes.remove_identity import RemoveIdentity
from fxprune.passes.remove_layers import RemoveLayers
from fxprune.passes.reparameterize import Reparameterize
from fxprune.pipeline import Pass

PASSES: dict[str, type[Pass]] = {
    cls.name: cls
    for cls in (
        CalibrateBatchNorm,
        DecomposeBasis,
        FuseBatchNorm,
        LinearizeActivations,
        MergeBasis,
        OverParameterize,
        PruneChannels,
        PruneWeights,
        RemoveIdentity,
        RemoveLayers,
        Reparameterize,
    )
}

__all__ = [
    "PASSES",
    "CalibrateBatchNorm",
    "DecomposeBasis",
    "FuseBatchNorm",
    "LinearizeActivations",
    "MergeBasis",
    "OverParameterize",
    "PruneChannels",
    "PruneWeights",
    "RemoveIdentity",
    "RemoveLayers",
    "Reparameterize",
]
