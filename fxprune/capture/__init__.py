"""Capture any ``nn.Module`` as one ``torch.fx`` graph of calls to its own layers."""

from fxprune.capture.export import trace
from fxprune.capture.propagate import propagate
from fxprune.capture.scaled import Scaled
from fxprune.capture.traced import Traced

__all__ = ["Scaled", "Traced", "propagate", "trace"]
