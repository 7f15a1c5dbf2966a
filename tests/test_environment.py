"""The two ways to set up, pip and conda, give the same versions."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BUILT_HERE = {"onedl-mmcv", "onedl-mmdetection", "pip"}  # left to `make setup`: compiled against the installed torch


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_conda_and_pip_pin_the_same_versions():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(pin.split("==") for pin in dependencies[-1]["pip"])
    assert conda == {name: version for name, version in lock().items() if name not in BUILT_HERE}


def test_every_version_is_exact():
    assert all(re.fullmatch(r"[\w.!]+", version) for version in lock().values())


def test_the_packages_that_the_project_is_built_on_are_locked():
    assert {"torch", "onedl-mmdetection", "onedl-mmcv", "lvis", "papermill", "jupyterlab", "snakemake", "pandas", "seaborn"} <= set(lock())


def test_no_registry_is_named():
    for name in ("requirements.lock", "environment.yml", "tools/setup.sh", "pyproject.toml"):
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", (ROOT / name).read_text()), name
