"""Which (parameter, dimension, index) slices must go together, and which stay and why."""

from fxprune.channels.coupling import Explanation
from fxprune.channels.groups import Group, Groups, find_groups
from fxprune.channels.minimums import Minimum

__all__ = ["Explanation", "Group", "Groups", "Minimum", "find_groups"]
