"""A gate's result for machines and people: JUnit XML, Markdown, annotations of a CI run."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from fxprune.deploy.gate.checks import Finding
from fxprune.deploy.gate.run import GateResult

_MARKS = {"ok": "ok", "exceeded": "over", "undecided": "undecided", "skipped": "-"}
_HEADLINES = {
    "pass": "passed",
    "fail": "failed",
    "inconclusive": "is undecided: the interval lies on both sides of the limit",
    "interrupted": "was interrupted",
}


def headline(result: GateResult) -> str:
    """Say the outcome in one line."""
    return f"{result.candidate.name} against {result.baseline.name}: the gate {_HEADLINES[result.outcome]}"


def junit(result: GateResult) -> str:
    """Return JUnit XML: a test case for each check; an undecided one that could fail the gate is an error."""
    findings = result.findings
    counts = {
        "tests": len(findings),
        "failures": sum(finding.fails for finding in findings),
        "errors": sum(finding.leaves_open for finding in findings),
        "skipped": sum(finding.status == "skipped" for finding in findings),
    }
    suite = ElementTree.Element(
        "testsuite",
        {
            "name": "fxprune gate",
            **{key: str(count) for key, count in counts.items()},
            "time": f"{sum(result.seconds.values()):.3f}",
        },
    )
    for finding in findings:
        suite.append(_case(finding, result))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(finding: Finding, result: GateResult) -> ElementTree.Element:
    seconds = result.seconds.get("latency", 0.0) if finding.check == "latency" else 0.0
    name = {"classname": f"fxprune.gate.{result.candidate.stem}", "name": finding.check, "time": f"{seconds:.3f}"}
    case = ElementTree.Element("testcase", name)
    text = _sentence(finding)
    if finding.status == "skipped":
        ElementTree.SubElement(case, "skipped", {"message": finding.message})
    elif finding.fails or finding.leaves_open:
        kind = "failure" if finding.fails else "error"
        ElementTree.SubElement(case, kind, {"message": text, "type": finding.status}).text = text
    else:
        ElementTree.SubElement(case, "system-out").text = text
    return case


def markdown(result: GateResult) -> str:
    """Return a summary for a page of a CI run."""
    lines = [f"### {headline(result)}", "", "| check | | found | limit | level |", "|---|---|---|---|---|"]
    for finding in result.findings:
        status = _MARKS[finding.status]
        mark = f"**{status}**" if finding.status in ("exceeded", "undecided") else status
        message = finding.message.replace("|", "\\|")
        lines.append(f"| {finding.check} | {mark} | {message} | {finding.limit:g} | {finding.level} |")
    lines += ["", *(f"- {note}" for note in result.notes)]
    where = result.machine
    load = f", load {where['load']:.1f}" if where["load"] is not None else ""
    lines.append(f"- {where['processor']}, {where['cores']} cores{load}, onnxruntime {where['onnxruntime']}")
    return "\n".join(lines) + "\n"


def workflow_commands(result: GateResult) -> Iterator[str]:
    """Yield GitHub's workflow commands for what failed, is undecided, or is worth a look."""
    for finding in result.findings:
        if finding.fails or finding.leaves_open:
            kind = "error"
        elif finding.warns:
            kind = "warning"
        else:
            continue
        title = _escaped(f"fxprune gate: {finding.check}").replace(":", "%3A").replace(",", "%2C")
        yield f"::{kind} title={title}::{_escaped(_sentence(finding))}"


def _sentence(finding: Finding) -> str:
    return f"{finding.check} {_MARKS[finding.status]}: {finding.message} (limit {finding.limit:g})"


def _escaped(text: str) -> str:
    """Escape what ends a workflow command: file names and node names are not ours."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
