"""``fxprune``: its commands, in the order of the help. Nothing here imports torch before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

import fxprune
from fxprune.cli.commands.look import doctor, explain, export, groups
from fxprune.cli.commands.make import demo, finetune, optimize, search
from fxprune.cli.commands.measure import bench, gate, probe, update
from fxprune.cli.shared.console import set_debug

app = typer.Typer(
    help="Make a trained model smaller and faster, prove that it is right, and ship it as ONNX.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help fits 80 columns, and errors are lines, not boxes
    pretty_exceptions_enable=False,
)
for command in (optimize, finetune, search, demo, groups, explain, export, probe, bench, gate, doctor):
    app.command()(command)
baselines = typer.Typer(help="What candidates are held against.", no_args_is_help=True, rich_markup_mode=None)
baselines.command()(update)
app.add_typer(baselines, name="baseline")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"fxprune {fxprune.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks with errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Make a trained model smaller and faster, prove that it is right, and ship it as ONNX."""
    set_debug(debug)


def main() -> None:
    """Run the command line."""
    app()
