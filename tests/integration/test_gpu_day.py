"""tests/manual/gpu_day.sh, dry: every section runs on a CPU, and none can take the others along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pcb.files import ROOT

sys.path.append(str(ROOT / "tests/manual"))
import gpu_day


@pytest.mark.slow
def test_all_sections_run_on_a_cpu(tmp_path):
    command = ["sh", str(ROOT / "tests/manual/gpu_day.sh"), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--minutes", "20", "--out", str(tmp_path / "day.json")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    day = json.loads((tmp_path / "day.json").read_text(encoding="utf-8"))
    assert {name: part["status"] for name, part in day["sections"].items()} == dict.fromkeys(
        gpu_day.SECTIONS, "ok"
    ), day["sections"]
    assert done.returncode == 0 and day["dry_run"] and day["hardware"]
    assert all(part["git"] and part["date"] for part in day["sections"].values())


def test_a_day_of_some_sections_keeps_the_others_of_the_same_machine(tmp_path):
    machine = {"dry_run": False, "driver": "580"}
    path = tmp_path / "day.json"
    assert gpu_day.earlier(path, machine) == {}
    path.write_text(json.dumps({**machine, "sections": {"speed": {"status": "ok"}}}))
    assert gpu_day.earlier(path, machine) == {"speed": {"status": "ok"}}
    assert gpu_day.earlier(path, {**machine, "driver": "590"}) == {}


def supervised(monkeypatch, tmp_path, body: str, limit: float = 30.0) -> list[dict]:
    """Run the sections `first` and `second`; the first has the given body."""
    module = tmp_path / "day.py"
    text = (ROOT / "tests/manual/gpu_day.py").read_text(encoding="utf-8")
    replacement = f"""
def first(device):
    {body}
def second(device):
    return {{"fine": True}}
SECTIONS = {{"first": first, "second": second}}
LIMITS = {{"first": {limit}, "second": 30}}
def main():
    run_sections(sys.argv[5:], "cpu", Path(sys.argv[2]))
if __name__"""
    text = text.replace("if __name__", replacement).replace("parents[2]", "parents[0]")
    module.write_text(text)
    monkeypatch.setattr(gpu_day, "__file__", str(module))
    monkeypatch.setattr(gpu_day, "LIMITS", {"first": limit, "second": 30.0})
    return gpu_day.supervise(["first", "second"], "cpu", gpu_day.time.monotonic() + 60)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("raise ValueError('an error')", "failed"),
        ("require(False, 'too slow', 7)", "failed"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "failed"),
        ("time.sleep(60)", "timeout"),
    ],
    ids=["error", "requirement", "crash", "hang"],
)
def test_a_section_that_fails_is_recorded_and_the_next_one_runs(
    monkeypatch, tmp_path, body, status
):
    first, second = supervised(monkeypatch, tmp_path, body, limit=1.0)
    assert first["status"] == status and first["error"]
    assert second["status"] == "ok" and second["measured"] == {"fine": True}


def test_sections_beyond_the_time_are_skipped():
    entries = gpu_day.supervise(["losses", "ranks"], "cpu", deadline=0.0)
    assert [entry["status"] for entry in entries] == ["skipped", "skipped"]


def test_the_time_limits_cover_every_section():
    assert gpu_day.LIMITS.keys() == gpu_day.SECTIONS.keys()


def test_a_synchronisation_is_placed_in_this_package_or_another():
    def of(name: str) -> str:
        return gpu_day.place(SimpleNamespace(filename=name, lineno=7))

    assert of(f"{ROOT}/pcb/losses/base.py") == "pcb/losses/base.py:7"
    inside = f"{ROOT}/.venv/lib/python3.11/site-packages/mmdet/models/x.py"
    assert of(inside) == "site-packages/mmdet/models/x.py:7"
    assert of("/pcb/env/site-packages/torch/x.py") == "site-packages/torch/x.py:7"
