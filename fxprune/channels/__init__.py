"""Which (parameter, dimension, index) slices must go together, and which stay and why."""

from fxprune.channels.coupling import Explanation
from fxprune.channels.groups import Group, Groups, find_groups

__all__ = ["Explanation", "Group", "Groups", "find_groups"]
