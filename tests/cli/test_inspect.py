"""``groups``, ``explain`` and ``export``: a model looked at, and left as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from cli.browser import CHROMIUM, Page

from fxprune.channels.groups import Group
from fxprune.cli import inspect
from fxprune.deploy.parity import OutputParity, Parity

Call = Callable[..., tuple[int, str]]
INPUT = ["--input", "1x3x16x16"]

DECIDES = """
from torch import nn

class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x
"""

SORTS = """
from torch import nn

class Sorts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.a(x)
        return self.b(h.sort(1)[0])
"""


def test_groups_as_json(call: Call, model_file: Path) -> None:
    code, text = call("groups", f"{model_file}:build", *INPUT, "--json")
    assert code == 0
    listed = json.loads(text)
    assert listed["units"] == 16 + 32
    assert [group["units"] for group in listed["groups"]] == [16, 32, 0]
    assert ["7.weight", 0] in listed["groups"][2]["parameters"]
    assert "the model returns it" in listed["groups"][2]["reason"]


def test_groups_as_text(call: Call, model_file: Path) -> None:
    code, text = call("groups", f"{model_file}:build", *INPUT)
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == f"{model_file}:build: 48 removable units in 3 groups"
    assert lines[3:] == [
        "     16      0  0 (0), 1 (0), 3 (1)",
        "     32      0  3 (0), 7 (1)",
        "      0      5  7 (0)",
        "                stays: the model returns it (at output)",
    ]


def test_groups_as_a_page(call: Call, model_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "groups.html"
    code, text = call("groups", f"{model_file}:build", *INPUT, "--html", str(page))
    assert code == 0
    assert text.splitlines()[-1] == f"{page}: 48 removable units in 3 groups"
    found = page.read_text()
    assert "48 removable units in 3 groups" in found
    assert "7.weight&nbsp;(0)" in found
    assert "the model returns it (at output)" in found
    assert "Outputs stay as they are" in found
    assert "<script" not in found
    assert found.count('class="layer"') == 3
    code, text = call("groups", f"{model_file}:build", *INPUT, "--html", str(tmp_path))
    assert code == 2
    assert "is a folder; name the file" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1200, 420])
def test_the_page_of_groups_in_a_browser(call: Call, model_file: Path, tmp_path: Path, width: int) -> None:
    file = tmp_path / "groups.html"
    assert call("groups", f"{model_file}:build", *INPUT, "--html", str(file))[0] == 0
    with Page() as page:
        page.open(file, width)
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run("document.querySelectorAll('#groups tr').length") == 4
        assert not page.problems
        assert all(address.startswith("file:") for address in page.requests)


def test_an_explanation_says_where_and_what_to_do(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "sorts.py"
    file.write_text(SORTS)
    code, text = call("explain", f"{file}:Sorts", "a.weight", "--input", "2x3")
    assert code == 0
    assert "stays: aten.sort" in text
    assert "sorts.py:11" in text
    assert "Sort or pick along another dimension" in text


def test_a_long_group_is_cut_short() -> None:
    names = tuple((f"stage.{number}.weight", 0) for number in range(9))
    first, second = inspect._row(Group(names, 1234, 5, "because " * 100)).splitlines()
    assert first.startswith("  1,234      5  stage.0 (0), stage.1 (0)")
    assert first.endswith("stage.5 (0) and 3 more")
    assert second.endswith("..., see --json")
    assert len(second) < 300


def test_explain(call: Call, model_file: Path) -> None:
    code, text = call("explain", f"{model_file}:build", "7.weight", *INPUT)
    assert code == 0
    assert "the model returns it" in text
    code, text = call("explain", f"{model_file}:build", "7.weight", "--dim", 1, *INPUT)
    assert code == 0
    assert "32 units can be removed" in text
    assert "goes with 3.weight, dimension 0" in text


def test_explain_a_misspelt_parameter(call: Call, model_file: Path) -> None:
    code, text = call("explain", f"{model_file}:build", "7.wieght", *INPUT)
    assert code == 2
    assert "7.weight" in text


def test_a_model_that_decides_is_refused_in_one_paragraph(
    call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Torch prints the graph so far, and warns, before it raises; none of that helps."""
    (tmp_path / "decides.py").write_text(DECIDES)
    code, text = call("groups", f"{tmp_path / 'decides.py'}:Decides", "--input", "1x4")
    assert code == 2
    assert text.count("\n") == 1
    assert "return self.layer(x) if x.sum() > 0 else x" in text
    assert capfd.readouterr() == ("", "")


def test_export(call: Call, model_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "m.onnx"
    code, text = call("export", f"{model_file}:build", *INPUT, "--out", file)
    assert code == 0, text
    assert text.startswith(f"{file}: opset ")
    onnx.checker.check_model(file)
    assert list(file.parent.iterdir()) == [file]


def test_export_needs_the_name_of_a_file(call: Call, model_file: Path, tmp_path: Path) -> None:
    code, text = call("export", f"{model_file}:build", *INPUT, "--out", tmp_path)
    assert code == 2
    assert "name the file" in text


def test_a_file_that_differs_does_not_replace_one_that_is_right(
    call: Call, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Parity((OutputParity("y", "float32", 0.5),), (1,))
    monkeypatch.setattr("fxprune.deploy.parity.check_parity", lambda *args, **kwargs: wrong)
    (tmp_path / "m.onnx").write_text("old")
    code, text = call("export", f"{model_file}:build", *INPUT, "--out", tmp_path / "m.onnx")
    assert code == 1
    assert "differs from the graph" in text
    assert (tmp_path / "m.onnx").read_text() == "old"
    assert not list(tmp_path.glob(".fxprune*"))
