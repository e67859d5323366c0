"""What a hunt records where a case breaks its worker: a case like any other, that counts as a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("psutil")

from tools import fuzz, fuzz_pipelines
from tools._fuzz_hunt import Hunt
from tools._records import Record, append, read

BY_KIND = {hunt.kind: hunt for hunt in (fuzz.HUNT, fuzz_pipelines.HUNT)}


@pytest.mark.parametrize("kind", BY_KIND)
def test_a_case_that_breaks_its_worker_is_a_crash(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hunt = BY_KIND[kind]
    right, lost = hunt.run(0), hunt.lost(4, "more than 8 GiB")
    assert right["outcome"] == "right"
    assert set(right) < set(lost)
    assert (lost[kind], lost["outcome"], lost["detail"]) == (4, "crash", "more than 8 GiB")
    assert "class Network" in lost["source"]
    out = tmp_path / "r.json"
    append(out, "networks", right, lost, right, key=(kind,), indent=None)
    assert len(out.read_text().splitlines()) == 1
    assert read(out, "networks")["networks"] == json.loads(json.dumps([right, lost]))
    page = hunt.page(read(out, "networks"))
    assert f"| random {kind}s | 2 |" in page
    assert "| crashes without a reason | 1 |" in page
    hunt._say([lost], out)
    said = capsys.readouterr().out
    assert said.startswith(f"{kind} 4: crash: more than 8 GiB\n")
    assert lost["source"] in said
    assert f"2 {kind}s, load" in said


def test_a_hunt_that_has_all_records_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(record: Record) -> str:
        return ""

    hunt = Hunt(
        "no.such.module", "case", "cases", tmp_path / "r.json", 2, 1.0, run=lambda n: {"case": n, "outcome": "right"},
        lost=lambda n, why: {"case": n, "outcome": "crash"}, page=lambda found: f"{len(found['networks'])} cases",
        told=told, show=lambda n: n,
    )  # fmt: skip
    records = hunt.shard([0, 1, 2])
    append(hunt.out, "networks", *records, key=("case",), indent=None)
    page = tmp_path / "page.md"
    assert hunt.main(None, ["--cases", "3", "--markdown", str(page)]) == 0
    assert page.read_text() == "<!-- cases:start -->\n3 cases\n<!-- cases:end -->\n"
    assert hunt.main(None, ["--show", "7"]) == 7
    append(hunt.out, "networks", hunt.lost(3, "it broke"), key=("case",), indent=None)
    assert hunt.main(None, ["--cases", "4"]) == 1
    with pytest.raises(RuntimeError, match="a worker did not begin"):
        hunt.main(None, ["--cases", "5"])
