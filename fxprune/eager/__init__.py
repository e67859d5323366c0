"""Results written back into the user's own class, whose code stays and is held to what the graph computes."""

from fxprune.eager.write import Applied, PassOn, apply_to

__all__ = ["Applied", "PassOn", "apply_to"]
