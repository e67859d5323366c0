"""A check of a model file against a baseline that a CI run can rely on."""

from __future__ import annotations

from fxprune.deploy.gate.baseline import update_baseline
from fxprune.deploy.gate.checks import CHECKS, Check, Finding, Rule
from fxprune.deploy.gate.config import GateConfig, find_config, read_config
from fxprune.deploy.gate.reports import headline, junit, markdown, workflow_commands
from fxprune.deploy.gate.run import GateResult, run_gate

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "GateConfig",
    "GateResult",
    "Rule",
    "find_config",
    "headline",
    "junit",
    "markdown",
    "read_config",
    "run_gate",
    "update_baseline",
    "workflow_commands",
]
