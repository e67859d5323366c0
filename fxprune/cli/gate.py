"""``gate``: the verdict on a candidate, on the terminal, in files, and where a CI system looks for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from fxprune.cli.shared.console import INTERRUPTED, err, out, say
from fxprune.cli.shared.files import parse_sizes, require_writable, write_json, write_text
from fxprune.errors import FxPruneError, InputError
from fxprune.interrupts import termination_interrupts

if TYPE_CHECKING:
    from fxprune.deploy.gate import GateConfig, GateResult

_COLORS = {"ok": "green", "exceeded": "red", "undecided": "yellow", "skipped": "dim"}
_WORDS = {"ok": "ok", "exceeded": "over", "undecided": "undecided", "skipped": "-"}


@dataclass(frozen=True)
class GateOptions:
    """The options of the command, as given; None and empty leave it to the configuration."""

    candidate: Path
    baseline: Path | None = None
    config: Path | None = None
    max_ratio: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[str, ...] = ()
    golden: Path | None = None
    json: Path | None = None
    junit: Path | None = None
    summary: Path | None = None


def run(options: GateOptions) -> None:
    """Judge, write what was asked for, and leave with the exit code of the verdict.

    Raises:
        FxPruneError: The gate could not be run; the JSON file says so too.
        typer.Exit: With 1, 3 or 130 where it did not pass.
    """
    require_writable(options.json, options.junit, options.summary)
    try:
        with termination_interrupts():
            result = _judge(options)
    except FxPruneError as error:
        _write_error(options, str(error), error.exit_code)
        raise
    except KeyboardInterrupt:  # before there was anything to keep
        _write_error(options, "interrupted", INTERRUPTED)
        raise
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _judge(options: GateOptions) -> GateResult:
    from fxprune.deploy.gate import headline, run_gate

    config = configured(options)
    baseline = options.baseline or config.baseline
    if baseline is None:
        raise InputError("name the file to compare with: --baseline FILE, or baseline in [gate] of fxprune.toml")
    say(f"measuring for at most {config.settings.seconds:g} s", err)  # a spinner's thread would be measured too
    result = run_gate(options.candidate, baseline, config, keep_interrupted=True)
    _write(options, result)  # before anything is printed: whoever reads along may stop reading
    _show(result)
    _annotate(result)
    say(headline(result), err)
    return result


def configured(options: GateOptions) -> GateConfig:
    """Read the configuration, and let the options of the command go before it.

    Raises:
        InputError: A value cannot be used.
    """
    from fxprune.deploy.gate import find_config, read_config

    config = read_config(options.config or find_config(Path.cwd()))
    given = {name: value for name, value in options.settings.items() if value is not None}
    sizes = parse_sizes(list(options.sizes))
    if sizes:
        given["sizes"] = {**(config.settings.sizes or {}), **sizes}
    config = replace(config, settings=replace(config.settings, **given), golden=options.golden or config.golden)
    return config if options.max_ratio is None else config.with_limit("latency", options.max_ratio)


def _show(result: GateResult) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, fixed in (("check", True), ("", True), ("limit", True), ("found", False)):
        table.add_column(column, no_wrap=fixed, justify="right" if column == "limit" else "left")
    for finding in result.findings:
        word = _WORDS[finding.status]
        level = f" ({finding.level})" if finding.status in ("exceeded", "undecided") and finding.level != "fail" else ""
        color = _COLORS[finding.status]
        table.add_row(finding.check, f"[{color}]{word}[/{color}]{level}", f"{finding.limit:g}", finding.message)
    out.print(table, soft_wrap=not out.is_terminal)
    for note in result.notes:
        say(f"note: {note}")


def _write(options: GateOptions, result: GateResult) -> None:
    from fxprune.deploy.gate import junit, markdown

    write_json(options.json, result.to_dict())
    if options.junit is not None:
        write_text(options.junit, junit(result))
    if options.summary is not None:
        write_text(options.summary, markdown(result))
    _append_step_summary(markdown(result))


def _annotate(result: GateResult) -> None:
    from fxprune.deploy.gate import workflow_commands

    if _on_github():
        for line in workflow_commands(result):
            print(line)  # not through rich, which would wrap it


def _write_error(options: GateOptions, error: str, code: int) -> None:
    outcome = "interrupted" if code == INTERRUPTED else "error"
    write_json(options.json, {"schema": 1, "complete": False, "outcome": outcome, "exit_code": code, "error": error})
    _append_step_summary(f"### {options.candidate.name}: the gate could not be run\n\n{error}\n")
    if _on_github():
        text = error.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        print(f"::error title=fxprune gate::{text}")


def _on_github() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def _append_step_summary(text: str) -> None:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with Path(path).open("a", encoding="utf-8") as stream:  # other steps write to it too
            stream.write(text + "\n")
