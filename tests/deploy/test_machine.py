"""The machine is described the same way twice."""

from __future__ import annotations

import json

from fxprune.deploy.machine import machine


def test_is_stable_and_json() -> None:
    first, second = machine(), machine()
    assert first["fingerprint"] == second["fingerprint"]
    assert first["processor"]
    assert first["cores"] >= 1
    json.dumps(first)
