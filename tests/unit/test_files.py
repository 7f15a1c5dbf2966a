"""Locks: one holder at a time, named in the error of another process, released by the kernel."""

import os
import subprocess
import sys

import pytest

from pcb.errors import UserError
from pcb.files import locked

HOLD = """
import sys
from pathlib import Path
from pcb.files import locked
with locked(Path(sys.argv[1]), "the index"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path/.lock` until it reads a line."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_lock_that_is_taken_is_refused_and_its_holder_named(tmp_path, holder):
    named = f"another process is working on the index: process {holder.pid} on "
    with pytest.raises(UserError, match=named) as error, locked(tmp_path / ".lock", "the index"):
        pass
    assert "results=FOLDER" in error.value.fix


def test_a_lock_ends_with_its_process(tmp_path, holder):
    holder.kill()
    holder.wait()
    with locked(tmp_path / ".lock", "the index"):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()


def test_a_waiting_process_names_the_holder_once(tmp_path, holder, capsys, monkeypatch):
    flock = __import__("fcntl").flock

    def release_first(file, operation):
        if not isinstance(file, int):  # the blocking call
            holder.communicate(b"\n")
        return flock(file, operation)

    monkeypatch.setattr("pcb.files.fcntl.flock", release_first)
    with locked(tmp_path / ".lock", "the index", wait=True):
        pass
    assert capsys.readouterr().err.count(f"process {holder.pid} on ") == 1


def test_a_file_with_content_of_its_own_keeps_it(tmp_path):
    part = tmp_path / "archive.part"
    part.write_bytes(b"half of it")
    with locked(part, "the download", record_holder=False):
        assert part.read_bytes() == b"half of it"
