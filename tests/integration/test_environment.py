"""Set-up: pip and conda give the same versions, and a wheel holds all files of the package."""

from __future__ import annotations

import re
import tomllib

import yaml

import pcb
from pcb.files import ROOT

BUILT_HERE = {
    "onedl-mmcv",
    "onedl-mmdetection",
    "pip",
}  # left to `make setup`


def lock(name: str = "requirements.lock") -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_conda_and_pip_pin_the_same_versions():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(pin.split("==") for pin in dependencies[-1]["pip"])
    assert conda == {name: version for name, version in lock().items() if name not in BUILT_HERE}


def test_the_second_lock_differs_in_torch_alone():
    ours, older = lock(), lock("requirements-cuda12.lock")
    assert {name for name in ours | older if ours.get(name) != older.get(name)} == {"torch"}


def test_every_version_is_exact():
    assert all(re.fullmatch(r"[\w.!]+", version) for version in lock().values())


def test_the_packages_that_the_project_is_built_on_are_locked():
    assert {
        "torch",
        "onedl-mmdetection",
        "onedl-mmcv",
        "lvis",
        "papermill",
        "jupyterlab",
        "snakemake",
        "pandas",
        "seaborn",
    } <= set(lock())


def test_no_registry_is_named():
    for name in (
        "requirements.lock",
        "requirements-cuda12.lock",
        "environment.yml",
        "tools/setup.sh",
        "pyproject.toml",
        "Dockerfile",
    ):
        assert not re.search(
            r"https?://|--(extra-)?index-url|--find-links", (ROOT / name).read_text()
        ), name


def test_the_extras_are_what_is_locked():
    """Every package of `pip install 'pcb[test]'` is locked, in a version that the extra allows."""
    number = re.compile(r"\d+")
    extras = project()["project"]["optional-dependencies"].values()
    for name, _, least in (
        line.partition(">=") for extra in extras for line in extra if not line.startswith("pcb[")
    ):
        assert name in lock(), name
        assert [int(n) for n in number.findall(lock()[name])] >= [
            int(n) for n in number.findall(least)
        ], name


def test_a_wheel_has_every_file_of_the_package():
    declared = project()["tool"]["setuptools"]["package-data"]
    files = {
        path
        for path in (ROOT / "pcb").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    packed = {
        path
        for package, patterns in declared.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert files and files <= packed, sorted(files - packed)


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (
        citation["version"] == pcb.__version__
        and f"[{pcb.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    )
    authors = [author["family-names"] for author in citation["preferred-citation"]["authors"]]
    assert authors == ["He", "Zhang", "Wei", "Zhang", "Sun"]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
