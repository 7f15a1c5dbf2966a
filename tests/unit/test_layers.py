"""The structure of the package: imports run downwards, without circles (pyproject.toml)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pcb.files import ROOT


def test_the_import_contract_holds():
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
