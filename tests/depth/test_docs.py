"""The examples of the page on depth run as they stand there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fxprune.cli.recipes.recipe import read_recipe

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "depth.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = EXAMPLES[number].replace('open("layers.json", "w").write(', 'Path("layers.json").write_text(')
    exec(compile(code, "docs/depth.md", "exec"), {"Path": Path})
    said = capsys.readouterr().out
    assert ("remove-layers: " in said) if number == 0 else ("2 became Conv2d(3, 8, kernel_size=(3, 3)" in said)


def test_the_recipe_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert tomllib.loads(text)["passes"][0]["name"] == "remove-layers"
    (tmp_path / "recipe.toml").write_text(text)
    assert [choice.name for choice in read_recipe(tmp_path / "recipe.toml")["passes"]] == ["remove-layers", "train"]
