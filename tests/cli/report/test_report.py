"""The report in its forms: a page that a real browser shows without a fault, and Markdown that says the same."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli.browser import CHROMIUM, Page, check_page
from typer.testing import CliRunner

from fxprune.cli.main import app
from fxprune.cli.report.facts import sections
from fxprune.cli.report.html import render
from fxprune.cli.report.md import render_markdown, table, text

NET = """
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 32, 3, padding=1))

    def forward(self, x):
        return x + self.inner(x)

def build():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), Residual(), nn.Conv2d(32, 32, 3, groups=32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )
"""
EVIL = '<img src="https://example.org/a.png" onerror="x()"><script>alert(1)</script>|`*_[a](b)'
LONG = "a_module_with_a_very_long_name." * 12 + "conv"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A report that optimize made."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "net.py").write_text(NET)
    words = [f"{folder / 'net.py'}:build", "--input", "1x3x16x16", "--macs", "0.5", "--seconds", "0.5"]
    result = CliRunner().invoke(app, ["optimize", *words, "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    assert (folder / "out" / "report.html").read_text(encoding="utf-8") == render(found)
    assert (folder / "out" / "report.md").read_text(encoding="utf-8") == render_markdown(found)
    return found


def bare(report: dict[str, Any]) -> dict[str, Any]:
    """Nothing was exported or measured, nothing can be counted, a check failed; as an older version wrote it."""
    del report["latency"], report["onnx"]
    report["ok"] = report["verify"]["ok"] = False
    report["before"] = report["after"] = {"params": 0, "macs": 0}
    report["widths"] = []
    report["groups"]["frozen"] = []
    report["notes"] = []
    return report


def odd(report: dict[str, Any]) -> dict[str, Any]:
    """Four hundred layers, names that are markup or too long, times of nothing, and a machine that was busy."""
    names = [EVIL, LONG, *(f"blocks.{i}.conv" for i in range(398))]
    report["model"] = f"zoo:{EVIL}{LONG}"
    report["notes"] = [EVIL, LONG]
    report["widths"] = [{"name": name, "before": 10 * i, "after": 9 * i} for i, name in enumerate(names)]
    report["passes"] = [{"name": EVIL, "changes": [{"place": LONG, "what": EVIL}], "skips": []}]
    report["recipe"] = f"# {EVIL}\n# {LONG}"
    report["latency"] |= {"ratio": 1.4, "ratio_low": 0.9, "ratio_high": 2.3, "control_holds": False, "notes": [LONG]}
    report["latency"]["machine"] = {"processor": LONG, "features": [EVIL], "load": 7.123456}
    none = {"macs": 0.0, "bytes": 0.0, "outputs": 0, "inputs": 0}
    some = {"macs": 1e6, "bytes": 4e5, "outputs": 16, "inputs": 16}
    gains = [
        {"layer": name, "before": some, "after": some | {"macs": 5e5 + i}, "before_ms": 0.1 + i / 1e4,
         "after_ms": 0.09, "kernels": ["Conv", EVIL], "reason": f"{EVIL} {LONG}" if i < 2 else ""}
        for i, name in enumerate(names)
    ]  # fmt: skip
    gains.append({"layer": "", "before": none, "after": none, "before_ms": 0.0, "after_ms": 0.0, "kernels": [],
                  "reason": ""})  # fmt: skip
    limits = {"macs_per_s": 5e10, "bytes_per_s": 2e10}
    report["gain"] = {"layers": gains, "roofline": limits, "runtime": "onnxruntime-cpu", "threads": 2, "batch": 1}
    groups = [
        {"parameters": [[f"{name}.weight", 0]], "units": i % 5, "removed": 0, "frozen": i % 2,
         "reason": f"{EVIL} {LONG}" * 5 if i < 3 else ""}
        for i, name in enumerate(names)
    ]  # fmt: skip
    layers = [
        {"name": name, "reads": sorted({max(i - k, 0) for k in (1, 7, 40)}), "writes": [i]}
        for i, name in enumerate(names)
    ]
    layers.append({"name": "alone", "reads": [], "writes": []})
    report["groups"] |= {"coupled": groups, "layers": layers}
    return report


def trained(report: dict[str, Any]) -> dict[str, Any]:
    """Nothing was cut, and two things were trained: one with options, one without a method."""
    accuracy = {"before": 0.1014, "after": 0.9972}
    training = {"step": 1, "methods": {}, "recipe": {"epochs": 15}, "steps": 300, "accuracy": accuracy}
    methods = {"basis-scaling": {"params": 0.6, "head": [EVIL, LONG]}, "distillation": {}}
    report["trainings"] = [training, {**training, "step": 3, "methods": methods}]
    report["accuracy"], report["data"] = {"dense": 1.0, "after": 0.9915}, f"imagefolder:{LONG}"
    report["steps"] = ["train", "decompose-basis", "train (basis-scaling + distillation)", "merge-basis"]
    report["plan"] = report["verify"] = report["groups"] = None
    return report


@pytest.fixture(params=["real", "whole", "bare", "odd", "trained"])
def any_report(request: pytest.FixtureRequest, report: dict[str, Any]) -> dict[str, Any]:
    if request.param == "real":
        return copy.deepcopy(request.getfixturevalue("real"))
    return {"whole": lambda same: same, "bare": bare, "odd": odd, "trained": trained}[request.param](report)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page(any_report: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(any_report), encoding="utf-8")
    check_page(file, any_report["model"], [name for name, _ in sections(any_report)])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_browser_of_these_tests_sees_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text("<img src='other.png'><div style='width: 3000px'>wide</div><script>missing()</script>")
    with Page() as page:
        page.open(file, 390)
        assert page.run("document.documentElement.scrollWidth") == 3000 + 8
        assert any("missing" in problem for problem in page.problems)
        assert (tmp_path / "other.png").as_uri() in page.requests


def test_both_forms_have_the_facts(real: dict[str, Any]) -> None:
    page, plain = render(real), render_markdown(real)
    for form in (page, plain):
        for layer in real["gain"]["layers"]:
            assert layer["layer"] in form
        for layer in real["widths"]:
            assert layer["name"] in form
        for value in (*real["versions"].values(), real["plan"]["hash"], real["latency"]["machine"]["processor"]):
            assert value in form
        assert f"{real['latency']['ratio']:.1%}" in form
        assert f"{real['verify']['max_relative_error']:.1e}" in form
        assert "the model returns it" in form
    assert all(f"## {title}" in plain and f">{title}</h2>" in page for _, title in sections(real))


def test_layers_and_groups_of_a_real_run(real: dict[str, Any]) -> None:
    groups = real["groups"]
    layers = {layer["name"]: layer for layer in groups["layers"]}
    stream = layers["0"]["writes"]
    assert list(layers) == ["0", "2.inner.0", "2.inner.2", "3", "7"]
    assert layers["0"]["reads"] == []  # the image
    assert layers["2.inner.0"]["reads"] == layers["2.inner.2"]["writes"] == stream
    assert layers["2.inner.0"]["writes"] == layers["2.inner.2"]["reads"] != stream
    assert layers["3"]["reads"] == layers["3"]["writes"] == layers["7"]["reads"] == stream
    widths = {layer["name"]: layer for layer in real["widths"]}
    for name in ("0", "2.inner.0"):
        group = groups["coupled"][layers[name]["writes"][0]]
        assert group["removed"] == widths[name]["before"] - widths[name]["after"]
    assert groups["coupled"][layers["7"]["writes"][0]]["units"] == 0


def test_markdown_is_well_formed(any_report: dict[str, Any]) -> None:
    plain = render_markdown(any_report)
    outside = re.sub(r"(?m)^    .*$", "", plain)  # but for the recipe, which is code
    tags = re.findall(r"(?<!\\)<[^>]*>", outside)
    assert set(tags) <= {"<details>", "</details>", "<summary>", "</summary>"}
    assert tags.count("<details>") == tags.count("</details>")
    for block in outside.split("\n\n"):
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_text_is_shown_as_it_is() -> None:
    assert text("features.0_a.conv: 3 of 4") == "features.0_a.conv: 3 of 4"
    assert text("_x_ *y* `z` |\n<b> & @me #1") == r"\_x\_ \*y\* \`z\` \| &lt;b&gt; &amp; &#64;me &#35;1"


def test_a_table() -> None:
    assert table(("a", "b"), [(1, "x|y")], "l") == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"
    assert table(("a",), []) == ""
    assert "see report.json" in table(("a",), [("long" * 100,)])
