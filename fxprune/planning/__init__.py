"""Decides what to remove: scores, costs, budgets, and the plan that records them."""

from fxprune.planning.cost import Cost, count
from fxprune.planning.make import make_plan
from fxprune.planning.plan import Plan

__all__ = ["Cost", "Plan", "count", "make_plan"]
