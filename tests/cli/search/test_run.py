"""``search`` from end to end: points, fit, choice, training, export, report; stopped, killed, and taken up again."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from cli.browser import CHROMIUM, check_page
from typer.testing import CliRunner

from fxprune.cli.main import app
from fxprune.cli.search.facts import sections
from fxprune.cli.search.html import render
from fxprune.cli.search.md import render_markdown
from fxprune.errors import InputError
from fxprune.planning import count
from fxprune.search import Subject, load
from fxprune.training import load_data

Call = Callable[..., tuple[int, str]]
Start = Callable[..., "subprocess.Popen[str]"]
SECONDS = 250  # until a process that hangs is ended
NET = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.norm(self.first(x)))) + x)


def build(width=8):
    stem = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*stem, *(Block(width) for _ in range(3)), *head(width))


def head(width):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)


class Placed(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.net = build()
        self.places = nn.Parameter(torch.zeros(1, 1, side, side))

    def forward(self, x):
        return self.net(x + self.places)


def nothing():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def score(model, resolution, epochs, folder):
    with open(folder / "calls", "a") as file:
        file.write("called\\n")
    size = sum(parameter.numel() for parameter in model.parameters())
    return 0.5 + 0.05 * min(size / 4000, 1) + 0.02 * (resolution or 8) / 8


def wide(model, resolution, epochs):
    return 0.5 + 0.05 * min(parameter.shape[0] for parameter in model.parameters() if parameter.ndim == 4)


def held(model, resolution, epochs, folder):  # no more trials come to their end than the file hold has bytes
    import time

    time.sleep(0.1)
    hold = folder.parents[1] / "hold"
    while hold.exists() and len(list(folder.parent.glob("*/result.json"))) >= hold.stat().st_size:
        time.sleep(0.02)
    return score(model, resolution, epochs, folder)


def disappoints(model, resolution, epochs):
    size = sum(parameter.numel() for parameter in model.parameters())
    if epochs == 0:
        return 0.5 + 0.05 * min(size / 4000, 1) + 0.001 * resolution
    return 0.6 if resolution == 8 else 0.4


def raises(model, resolution, epochs):
    raise RuntimeError("the images are on the other disk")


def not_small(model, resolution, epochs):
    if resolution < 8:
        raise RuntimeError("these images are too small for me")
    return 0.5


def nan(model, resolution, epochs):
    return float("nan")


def other(model):
    return 0.5
"""
QUICK = ["--points", 1, "--epochs", 0, "--final-epochs", 0, "--round-to", 1, "--no-onnx"]
OWN = ["--input", "1x1x8x8", *QUICK]


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(NET)
    return str(path)


@pytest.fixture(scope="module")
def done(net: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole search on real data, and what the command said."""
    out = tmp_path_factory.mktemp("done") / "out"
    words = ["--data", "digits", "--fraction", 0.3, "--macs", 0.5, "--points", 1, "--epochs", 1, "--final-epochs", 1]
    words += ["--lr", 0.05, "--batch", 32, "--round-to", 1, "--seconds", 0.5]
    code, text = invoke("search", f"{net}:build", *words, "--out", out)
    assert code == 0, text
    return out, text


@pytest.fixture(scope="module")
def report(done: tuple[Path, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done[0] / "report.json").read_text())
    return found


def builder(net: str) -> Any:
    from fxprune.cli.search.parts import ModelOf

    return ModelOf(f"{net}:build")


# ---------------------------------------------------------------- what comes out


def test_all_files_are_there_and_say_the_same(done: tuple[Path, str], report: dict[str, Any]) -> None:
    out, _ = done
    names = {"model.onnx", "model.safetensors", "plans.json", "report.json", "report.html", "report.md", "search"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "report.html").read_text(encoding="utf-8") == render(report)
    assert (out / "report.md").read_text(encoding="utf-8") == render_markdown(report)


def test_the_budget_is_met_and_every_dimension_has_its_point(net: str, report: dict[str, Any]) -> None:
    dense = count(Subject(builder(net), torch.zeros(1, 1, 8, 8)).at(8)).macs
    assert report["before"]["macs"] == dense
    assert report["after"]["macs"] <= 0.5 * dense
    assert report["chosen"]["macs"] == report["after"]["macs"]
    shares = [tuple(each[axis] for axis in ("depth", "width", "resolution")) for each in report["points"]]
    assert shares[0] == (1.0, 1.0, 1.0)
    assert [sum(value < 1 for value in each) for each in shares] == [0, 1, 1, 1]
    assert set(report["alternatives"]) == {"depth only", "width only", "resolution only", "uniform"}
    built = [each for each in report["alternatives"].values() if "reason" not in each]
    assert built
    assert all(each["cost"] <= 0.5 and 0 <= each["accuracy"] <= 1 and 0 <= each["test"] <= 1 for each in built)
    assert report["ok"] is True
    assert report["onnx"]["max_relative_error"] <= 1e-4
    assert report["latency"]["ratio"] > 0
    assert set(report["fitted"]["errors"]) == {"1", "2", "3", "full"}


def test_the_file_has_the_accuracy_that_is_reported(done: tuple[Path, str], report: dict[str, Any]) -> None:
    side = report["chosen"]["side"]
    test = load_data("digits", size=side).test
    assert isinstance(test, Sized)
    images, labels = zip(*(test[index] for index in range(len(test))), strict=True)
    session = onnxruntime.InferenceSession(done[0] / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: torch.stack(images).numpy()})
    right = (np.argmax(logits, 1) == np.asarray(labels)).mean()
    assert right == pytest.approx(report["accuracy"]["after"], abs=1.5 / len(labels))
    assert report["chosen"]["test"] == report["accuracy"]["after"]


def test_the_network_is_rebuilt_from_the_folder(done: tuple[Path, str], net: str) -> None:
    network = load(done[0], builder(net))
    images = torch.randn(3, 1, network.side or 1, network.side or 1)
    session = onnxruntime.InferenceSession(done[0] / "model.onnx")
    (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(network.traced.run((images,))[0], torch.from_numpy(given), rtol=1e-4, atol=1e-4)


def test_a_damaged_folder_is_refused_with_the_file(done: tuple[Path, str], net: str, tmp_path: Path) -> None:
    for name in ("plans.json", "report.json"):
        shutil.copy(done[0] / name, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load(tmp_path, builder(net))
    (tmp_path / "report.json").unlink()
    with pytest.raises(InputError, match="example="):
        load(tmp_path, builder(net))


def test_the_summary_is_short_and_has_the_figures(done: tuple[Path, str], report: dict[str, Any]) -> None:
    summary = done[1][done[1].rindex("all checks passed") :]
    assert len(summary.splitlines()) < 25
    for name in ("three dimensions", *report["alternatives"]):
        assert name in summary
    assert f"{report['chosen']['cost']:.1%}" in summary
    assert f"{report['accuracy']['after']:.2%} in the end" in summary


# ---------------------------------------------------------------- the page


def bare(report: dict[str, Any]) -> dict[str, Any]:
    """One dimension, a training of one's own, nothing exported, and alternatives that were not trained."""
    del report["onnx"], report["latency"], report["accuracy"]
    report["ok"] = report["met"] = False
    report["space"] |= {"removed": [], "resolutions": [], "side": None, "sides": []}
    report["points"] = [each for each in report["points"] if each["depth"] == each["resolution"] == 1.0]
    report["asked"] |= {"dimensions": ["width"], "alternatives": False, "data": None, "train": "my.module:train"}
    report["chosen"]["side"] = None
    report["fitted"]["errors"] = {"1": None, "2": None, "3": None, "full": None}
    report["alternatives"] = {"width only": report["alternatives"]["width only"] | {"accuracy": None}}
    return report


def two(report: dict[str, Any]) -> dict[str, Any]:
    """Width and resolution, and a budget of latency that was not met."""
    report["space"]["removed"] = []
    report["points"] = [each for each in report["points"] if each["depth"] == 1.0]
    report["asked"] |= {"dimensions": ["width", "resolution"], "budget": {"latency": 0.5}}
    report["latency"] |= {"ratio": 1.4, "ratio_low": 1.2, "ratio_high": 2.3, "control_holds": False}
    report["ok"] = False
    return report


EVIL = '<img src="https://example.org/a.png" onerror="x()"><script>alert(1)</script>|`*_[a](b)'
LONG = "a_module_with_a_very_long_name." * 12 + "conv"


def odd(report: dict[str, Any]) -> dict[str, Any]:
    """Names that are markup or too long, trials that failed, and hosts of any name."""
    report["model"] = f"zoo:{EVIL}{LONG}"
    report["notes"] = [EVIL, LONG]
    point = report["points"][-1] | {"worker": LONG, "macs": 123_456_789_012, "seconds": 1e6}
    report["points"] += [point] * 30
    report["failed"] = [point | {"error": f"{EVIL} {LONG}", "accuracy": None}] * 3
    report["alternatives"]["depth only"] = {"reason": f"{EVIL} {LONG}"}
    report["alternatives"]["uniform"] |= {"accuracy": None, "test": None, "error": EVIL}
    report["fitted"]["optimum"] |= {"depth": 0.0, "resolution": 2.0}
    report["asked"] |= {"data": f"imagefolder:{LONG}"}
    return report


@pytest.fixture(params=["whole", "bare", "two", "odd"])
def any_report(request: pytest.FixtureRequest, report: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"whole": lambda same: same, "bare": bare, "two": two, "odd": odd}
    found: dict[str, Any] = made[request.param](copy.deepcopy(report))
    return found


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page(any_report: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(any_report), encoding="utf-8")
    marks = "[...document.querySelectorAll('svg circle, svg polyline')].every(m => m.getBBox().x >= 0)"
    check_page(file, any_report["model"], [name for name, _ in sections(any_report)], also=marks)


def test_both_forms_have_the_facts(report: dict[str, Any]) -> None:
    page, plain = render(report), render_markdown(report)
    for form in (page, plain):
        for name, each in report["alternatives"].items():
            assert name in form
            assert "reason" in each or f"{each['accuracy']:.1%}" in form
        for each in report["points"]:
            assert f"{each['accuracy']:.1%}" in form
        assert f"{report['latency']['ratio']:.1%}" in form
        assert f"{report['fitted']['exponents']['depth']:.2f}" in form
    assert all(f"## {title}" in plain and f">{title}</h2>" in page for _, title in sections(report))
    assert page.count('class="curve"') == 3
    assert page.count('class="dot"') == 6
    assert 'class="cell"' in page
    assert 'class="ring"' in page


def test_markdown_is_well_formed(any_report: dict[str, Any]) -> None:
    plain = render_markdown(any_report)
    assert set(re.findall(r"(?<!\\)<[^>]*>", plain)) <= {"<details>", "</details>", "<summary>", "</summary>"}
    for block in plain.split("\n\n"):
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


# ---------------------------------------------------------------- going on


def test_another_budget_uses_the_points_that_are_there(done: tuple[Path, str], net: str, tmp_path: Path) -> None:
    shutil.copytree(done[0] / "search", tmp_path / "out" / "search")
    words = ["--data", "digits", "--fraction", 0.3, "--points", 1, "--epochs", 1, "--lr", 0.05, "--batch", 32]
    words += ["--round-to", 1, "--final-epochs", 0, "--macs", 0.6, "--no-alternatives", "--no-onnx"]
    words += ["--explore", 0.5]
    code, text = invoke("search", f"{net}:build", *words, "--out", tmp_path / "out")
    assert code == 0, text
    assert text.count("(known)") == 4
    assert text.count(": started on") == 1
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["after"]["macs"] <= 0.6 * found["before"]["macs"]
    assert all(each.get("accuracy") is None for each in found["alternatives"].values())
    code, text = invoke("search", f"{net}:build", *words, "--lr", 0.5, "--out", tmp_path / "out")
    assert code == 2
    assert "lr was 0.05 and is 0.5" in text


def calls(out: Path) -> list[int]:
    """Return how often each trial was trained."""
    return [len(path.read_text().split()) for path in out.glob("search/trials/*/calls")]


def test_interrupted_and_killed_it_goes_on(start: Start, net: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["search", f"{net}:build", "--train", f"{net}:held", *OWN, "--macs", 0.6, "--no-alternatives", "--out", out]
    hold = out / "search" / "hold"
    hold.parent.mkdir(parents=True)
    for number, (kind, code) in enumerate(((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)), 1):
        hold.write_bytes(bytes(number))
        with start(*words) as process:
            begun = time.monotonic()
            while len(list(out.glob("search/trials/*/result.json"))) < number and time.monotonic() - begun < SECONDS:
                time.sleep(0.02)
            os.kill(process.pid, kind)
            _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == code, said
        assert not (out / "report.json").exists()
        if kind == signal.SIGINT:
            assert f"fxprune: interrupted; the same command goes on from {out / 'search'}" in said
    ended = len(list(out.glob("search/trials/*/result.json")))
    assert ended == 2
    hold.unlink()
    code, text = invoke(*words)
    assert code == 0, text
    assert text.count("(known)") == ended
    assert calls(out) == [1] * 5, text
    assert json.loads((out / "report.json").read_text())["ok"] is True


# ---------------------------------------------------------------- other ways


def test_a_model_made_for_one_size_on_two_processes(net: str, tmp_path: Path) -> None:
    words = ["--side-arg", "side", "--train", f"{net}:score", *OWN, "--dimensions", "width, resolution", "--macs", 0.5]
    words += ["--workers", 2, "--no-alternatives", "--out", tmp_path / "out"]
    code, text = invoke("search", f"{net}:Placed", *words)
    assert code == 0, text
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["asked"]["executor"] == "2 processes with 1 thread each"
    assert len({each["side"] for each in found["points"]}) == 2
    from fxprune.cli.search.parts import ModelOf

    network = load(tmp_path / "out", ModelOf(f"{net}:Placed", (), "side"), by_side=True)
    side = found["chosen"]["side"]
    assert network.side == side
    assert network.traced.module.get_parameter("places").shape == (1, 1, side, side)


def test_open_sizes_after_layers_and_channels_went(net: str, tmp_path: Path) -> None:
    words = ["--train", f"{net}:wide", "--input", "1x1x8x8", *QUICK[:-1], "--macs", 0.3, "--no-alternatives"]
    words += ["--no-latency", "--dynamic-size", "--dimensions", "depth,width", "--out", tmp_path]
    code, text = invoke("search", f"{net}:build", *words)
    assert code == 0, text
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["chosen"]["layers"] > 0
    assert found["chosen"]["width"] < 1
    assert found["onnx"]["open_sizes"] is True
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for sides in ((8, 8), (13, 20)):
        images = torch.randn(2, 1, *sides)
        (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert given.shape == (2, 10)


def test_trials_that_fail_are_reported_and_run_again_when_asked(net: str, tmp_path: Path) -> None:
    words = ["--train", f"{net}:not_small", *OWN, "--macs", 0.5, "--no-alternatives", "--out", tmp_path]
    words += ["--dimensions", "width,resolution"]
    code, text = invoke("search", f"{net}:build", *words)
    assert code == 0, text
    found = json.loads((tmp_path / "report.json").read_text())
    assert [each["error"] for each in found["failed"]] == ["RuntimeError: these images are too small for me"]
    assert found["chosen"]["resolution"] == 1.0
    assert "too small for me" in (tmp_path / "report.md").read_text()
    assert "Trials that failed" in (tmp_path / "report.html").read_text()
    assert "note: a trial failed" in text
    code, text = invoke("search", f"{net}:build", *words)
    assert text.count("(known)") == 4
    code, text = invoke("search", f"{net}:build", *words, "--retry-failed")
    assert code == 0, text
    assert text.count(": started on") == 1


def test_what_came_out_better_is_said_and_can_be_taken(net: str, tmp_path: Path) -> None:
    """Small images look good on the way and are bad in the end, so another network of the same budget is better."""
    words = ["search", f"{net}:build", "--train", f"{net}:disappoints", *OWN, "--macs", 0.5, "--out", tmp_path]
    words[words.index("--final-epochs") + 1] = 1
    code, text = invoke(*words)
    assert code == 0, text
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["chosen"]["resolution"] < 1
    (note,) = [note for note in found["notes"] if "came out better" in note]
    better, axis = found["alternatives"], note.split(" only ")[0]
    assert note.startswith(f"{axis} only came out better than what was predicted to be best: 60.0% against 40.0%")
    assert f"--dimensions {axis} takes it" in note
    code, text = invoke(*words, "--dimensions", axis)
    assert code == 0, text
    assert ": started on" not in text  # nothing was trained anew
    taken = json.loads((tmp_path / "report.json").read_text())["chosen"]
    assert (taken["trial"], taken["accuracy"]) == (better[f"{axis} only"]["trial"], 0.6)


# ---------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "digits"], "give exactly one budget"),
        (["--data", "digits", "--macs", 0.5, "--latency", 0.5], "give exactly one budget"),
        (["--data", "digits", "--macs", 1.5], "outside (0, 1)"),
        (["--data", "digits", "--macs", "nan"], "outside (0, 1)"),
        (["--macs", 0.5], "--data SPEC"),
        (["--macs", 0.5, "--data", "digits", "--train", "{net}:score"], "--data SPEC"),
        (["--macs", 0.5, "--data", "nowhere"], "there are no data 'nowhere'"),
        (["--macs", 0.5, "--train", "{net}:absent"], "has no attribute 'absent'"),
        (["--macs", 0.5, "--train", "absent"], "names no function"),
        (["--macs", 0.5, "--train", "{net}:score", "--lr", 0.1, "--augment"], "--augment, --lr would change nothing"),
        (["--macs", 0.5, "--train", "{net}:other"], "cannot be called as train_and_evaluate"),
        (["--macs", 0.5, "--data", "digits", "--lr", 0], "lr is 0"),
        (["--macs", 0.5, "--data", "digits", "--explore", 0.7], "explore=0.7"),
        (["--macs", 0.5, "--data", "digits", "--epochs", -1], "epochs is (-1, 10)"),
        (["--macs", 0.5, "--data", "digits", "--dimensions", "depth,height"], "got height"),
        (["--macs", 0.5, "--data", "digits", "--dimensions", ","], "got none"),
        (["--macs", 0.5, "--data", "digits", "--round-to", "some"], "--round-to 'some'"),
        (["--macs", 0.5, "--data", "digits", "--runtime", "abacus"], "there is no runtime 'abacus'"),
        (["--macs", 0.5, "--data", "digits", "--trial-gpus", 0.5], "--ray local"),
        (["--macs", 0.5, "--data", "digits", "--timeout", 0], "timeout is 0"),
        (["--macs", 0.5, "--data", "digits", "--input", "1x1x8x8", "--input", "1x4"], "one input"),
        (["--macs", 0.5, "--data", "digits", "--input", "1x1x8x9"], "are squares"),
        (["--macs", 0.5, "--data", "digits", "--input", "1x3x8x8"], "--image-channels"),
        (["--macs", 0.5, "--data", "digits", "--model-arg", "width"], "--model-arg 'width'"),
        (["--macs", 0.5, "--data", "digits", "--side-arg", "side"], "unexpected keyword argument 'side'"),
        (["--macs", 0.5, "--data", "digits", "--weights", "absent.pt"], "no weights file"),
    ],
)
def test_what_cannot_be_asked(call: Call, net: str, tmp_path: Path, words: list[Any], said: str) -> None:
    filled = [word.format(net=net) if isinstance(word, str) else word for word in words]
    code, text = call("search", f"{net}:build", *filled, "--out", tmp_path / "out")
    assert code == 2, text
    assert said in text
    assert not (tmp_path / "out" / "search").exists()


@pytest.mark.parametrize(
    ("model", "words", "code", "said"),
    [
        ("nothing", ["--train", "score", "--dimensions", "depth", "--macs", 0.5], 2, "nothing to search over"),
        ("build", ["--train", "score", "--dimensions", "depth", "--macs", 0.05], 1, "Ask for at least 0."),
        ("build", ["--train", "raises", "--macs", 0.5], 1, "the images are on the other disk"),
        ("build", ["--train", "nan", "--macs", 0.5], 1, "number from 0 to 1"),
        ("build", ["--train", "score", "--points", 0, "--macs", 0.5], 2, "0 points"),
        ("build", ["--train", "score", "--layer-importance", "l3", "--macs", 0.5], 2, "no importance 'l3'"),
        ("build", ["--train", "score", "--importance", "l3", "--macs", 0.5], 2, "l3"),
    ],
)
def test_what_cannot_be_found(
    call: Call, net: str, tmp_path: Path, model: str, words: list[Any], code: int, said: str
) -> None:
    words[1] = f"{net}:{words[1]}"
    found, text = call("search", f"{net}:{model}", *OWN, *words, "--out", tmp_path)
    assert found == code, text
    assert said in text
    assert not (tmp_path / "report.json").exists()


def test_a_file_in_the_place_of_the_folder(call: Call, net: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    code, text = call(
        "search", f"{net}:build", "--train", f"{net}:score", *OWN, "--macs", 0.5, "--out", tmp_path / "out"
    )
    assert code == 2
    assert "is a file" in text


def test_help_fits_the_terminal(call: Call) -> None:
    code, text = call("search", "--help")
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert "--side-arg" in text
