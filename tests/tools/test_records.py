"""Files of records and pages: nothing is lost, whoever writes at once, and a page without its markers stays."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools._records import append, begin_page, changed, has, put_between, put_between_marks, read, write

ROOT = Path(__file__).resolve().parents[2]


def processes(*scripts: str) -> list[int]:
    """Run programs at once, and return how they ended."""
    started = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) for script in scripts]
    return [process.wait() for process in started]


def test_neither_torch_nor_numpy_is_loaded() -> None:
    loaded = "import sys, tools._records, tools._pool; sys.exit(bool({'torch', 'numpy', 'psutil'} & set(sys.modules)))"
    assert processes(loaded) == [0]


# ---------------------------------------------------------------- records


def test_what_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none.json") == {}
    assert read(tmp_path / "none.json", "trials") == {"trials": []}


def test_a_record_is_kept_once_and_the_first_counts(tmp_path: Path) -> None:
    out = tmp_path / "new" / "r.json"
    append(out, "trials", {"net": "a", "seed": 0, "found": 1}, key=("net", "seed"), about={"machine": "one"})
    append(out, "trials", {"net": "a", "seed": 0, "found": 2}, key=("net", "seed"), about={"machine": "two"})
    assert read(out) == {"schema": 1, "trials": [{"net": "a", "seed": 0, "found": 1}], "machine": "one"}
    append(out, "trials", {"net": "a", "seed": 1}, {"net": "a", "seed": 1}, key=("net", "seed"))
    append(out, "latency", {"net": "a", "seed": 1}, key=("net", "seed"), about={"machine": "two"})
    assert list(read(out)) == ["schema", "trials", "machine", "latency"]
    assert [len(read(out, name)[name]) for name in ("trials", "latency", "none")] == [2, 1, 0]
    assert read(out)["machine"] == "two"
    assert [file.name for file in out.parent.iterdir()] == ["r.json"]
    with pytest.raises(KeyError, match="seed"):
        append(out, "trials", {"net": "b"}, key=("net", "seed"))


def test_a_key_is_some_entries_of_a_record() -> None:
    records = [{"net": "a", "shares": [1, 2], "found": 3}]
    assert has(records, {"net": "a", "shares": [1, 2]})
    assert not has(records, {"net": "a", "seed": 0})
    assert not has([], {})


@pytest.mark.parametrize(("indent", "text"), [(1, '{\n "a": [\n  0.1\n ]\n}\n'), (None, '{"a": [0.1]}\n')])
def test_a_file_that_is_written_again_is_the_same(tmp_path: Path, indent: int | None, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with changed(tmp_path / "r.json", indent=indent) as content:
        assert content == {"a": [0.1]}
    assert (tmp_path / "r.json").read_text() == text


def test_what_is_raised_leaves_the_file(tmp_path: Path) -> None:
    write(tmp_path / "r.json", {"a": 1})
    with pytest.raises(ZeroDivisionError), changed(tmp_path / "r.json") as content:
        content["a"] = 2 // (content["a"] - 1)
    assert read(tmp_path / "r.json") == {"a": 1}


def test_threads_that_share_a_file_lose_no_record_and_keep_none_twice(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: append(out, "trials", {"number": n % 24}, key=("number",)), range(36)))
    assert sorted(record["number"] for record in read(out)["trials"]) == list(range(24))


def test_processes_that_share_a_file_lose_no_record_and_keep_none_twice(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    script = (
        "import pathlib\nfrom tools._records import append\n"
        "for n in range({}, {}): append(pathlib.Path({!r}), 'trials', {{'number': n}}, key=('number',))\n"
    )
    assert processes(*(script.format(first, first + 20, str(out)) for first in (0, 10, 20))) == [0, 0, 0]
    assert sorted(record["number"] for record in read(out)["trials"]) == list(range(40))


def test_a_writer_that_is_killed_leaves_the_file_and_no_lock(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    append(out, "trials", {"number": 0}, key=("number",))
    script = (
        "import os, pathlib\nfrom tools._records import changed\n"
        f"with changed(pathlib.Path({str(out)!r})) as content:\n"
        "    content['trials'].append({'number': 1})\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert processes(script) == [-9]
    append(out, "trials", {"number": 2}, key=("number",))
    assert [record["number"] for record in json.loads(out.read_text())["trials"]] == [0, 2]


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("behind", ["", "\n", "\nafter\n"])
@pytest.mark.parametrize("text", ["new\n", "new"])
def test_text_goes_between_the_markers(tmp_path: Path, text: str, behind: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- a:start -->\nold\n<!-- a:end -->{behind}")
    for _ in range(2):
        put_between(page, "a", text)
    assert page.read_text() == f"before\n<!-- a:start -->\nnew\n<!-- a:end -->{behind}"


@pytest.mark.parametrize(
    "page",
    [
        "",
        "before\n",
        "<!-- a:start -->\nold\n",
        "old\n<!-- a:end -->\n",
        "<!-- a:end -->\nold\n<!-- a:start -->\n",
        "<!-- a:start -->\n<!-- a:end -->\n<!-- a:start -->\n<!-- a:end -->\n",
        "<!-- a:start -->\n<!-- a:end -->\nold\n<!-- a:end -->\n",
        "<!-- a-b:start -->\n<!-- a-b:end -->\n",
    ],
)
def test_a_page_without_its_markers_is_refused_in_one_line_and_stays(tmp_path: Path, page: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(SystemExit, match=r"page\.md was not changed: it needs a line <!-- a:start --> and") as refused:
        put_between(path, "a", "new\n")
    assert "\n" not in str(refused.value)
    assert path.read_text() == page


def test_a_program_says_which_markers_are_missing_and_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    script = (
        f"import pathlib; from tools._records import put_between; put_between(pathlib.Path({str(page)!r}), 'a', '')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "<!-- a:end -->" in done.stderr


def test_where_there_is_no_page_one_is_begun(tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.md"
    put_between(page, "a", "text\n")
    assert page.read_text() == "<!-- a:start -->\ntext\n<!-- a:end -->\n"
    begin_page(page, "b")
    assert "b:start" not in page.read_text()
    begin_page(tmp_path / "two.md", "a", "b")
    put_between(tmp_path / "two.md", "b", "text\n")
    assert (tmp_path / "two.md").read_text() == (
        "<!-- a:start -->\n<!-- a:end -->\n\n<!-- b:start -->\ntext\n<!-- b:end -->\n"
    )


def test_one_marker_before_and_behind(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- table -->\nafter\n")
    put_between_marks(page, "<!-- table -->\n", "<!-- table -->", "new\n")
    assert page.read_text() == "before\n<!-- table -->\nnew\n<!-- table -->\nafter\n"
    for marks in (1, 3):
        page.write_text("<!-- table -->\n" * marks)
        with pytest.raises(SystemExit, match="was not changed"):
            put_between_marks(page, "<!-- table -->\n", "<!-- table -->", "new\n")


def test_processes_that_share_a_page_lose_no_part_of_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin_page(page, "a", "b", "c")
    script = (
        "import pathlib\nfrom tools._records import put_between\n"
        "for n in range(20): put_between(pathlib.Path({!r}), {!r}, f'{{n}} of {}')\n"
    )
    assert processes(*(script.format(str(page), name, name) for name in "abc")) == [0, 0, 0]
    lines = page.read_text().splitlines()
    assert [line for line in lines if " of " in line] == ["19 of a", "19 of b", "19 of c"]
