"""Every benchmark by one command; each is a file of its own, with its own ``--help``.

python tools/bench.py latency [...]      latency budgets and speed-ups on eight networks, beside Torch-Pruning
python tools/bench.py gate [...]         false alarms and misses of the latency gate
python tools/bench.py prune [...]        how long pruning takes, beside Torch-Pruning
python tools/bench.py recovery [...]     what brings accuracy back
python tools/bench.py papers [...]       methods from papers, in small
python tools/bench.py trials [...]       how many trials of a search one worker and two get done
python tools/bench.py runtime [...]      dense and pruned on a runtime; the word may be left out: --runtime torch-cuda
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NAMES = ("latency", "gate", "prune", "recovery", "papers", "trials", "runtime")


def main() -> int:
    """Run the benchmark that the first word names."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    name = words[0] if words[0] in NAMES else "runtime"
    if name == words[0]:
        words = words[1:]
    elif not words[0].startswith("-"):
        print(f"there is no benchmark {words[0]!r}; known are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"tools.bench_{name}")
    sys.argv = [str(Path(str(module.__file__))), *words]
    return int(module.main())


if __name__ == "__main__":
    sys.exit(main())
