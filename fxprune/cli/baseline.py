"""``baseline update``: accept a file as what later candidates are held against."""

from __future__ import annotations

from pathlib import Path

from fxprune.cli.gate import GateOptions, configured
from fxprune.cli.shared.console import say
from fxprune.errors import InputError


def update(options: GateOptions, *, keep_outputs: bool) -> None:
    """Write the record of a baseline, and its outputs for golden inputs.

    Raises:
        FxPruneError: The file cannot be read or run, or the record not be written.
    """
    from fxprune.deploy.gate import update_baseline

    config = configured(options)
    baseline: Path | None = options.baseline or config.baseline
    if baseline is None:
        raise InputError("name the file: fxprune baseline update FILE, or baseline in [gate] of fxprune.toml")
    record = update_baseline(baseline, config, golden=config.golden, keep_outputs=keep_outputs)
    figures = record.values["figures"]
    say(f"{baseline}: {figures['sha256'][:16]}, {figures['bytes']:,} bytes, {figures['params']:,} parameters")
    say(f"written to {record.path}")
