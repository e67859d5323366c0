"""Every check of the repository as one command: ``python tools/check.py [pytest arguments]``.

Runs all of them even when one fails, and exits with 1 if any did.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))

CHECKS = (
    (sys.executable, "-m", "ruff", "format", "--check", "."),
    (sys.executable, "-m", "ruff", "check", "."),
    (sys.executable, "-m", "mypy"),
    (str(SCRIPTS / "lint-imports"),),  # has no -m form
    (sys.executable, "-m", "pytest"),
)


def main() -> int:
    """Run the checks in order and return the exit code."""
    failed = []
    for check in CHECKS:
        is_pytest = check[-1] == "pytest"
        command = [*check, *sys.argv[1:]] if is_pytest else list(check)
        label = " ".join([Path(command[0]).name, *command[1:]])
        print(f"$ {label}", flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(label)
    print(f"failed: {'; '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
