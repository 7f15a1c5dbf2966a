"""Files: whole or absent, swept after a kill, and locks that the kernel releases."""

import os
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from pcb.errors import UserError
from pcb.files import (
    atomic,
    intact_files,
    is_intact,
    load_npz,
    locked,
    save_hashed,
    save_npz,
    sweep,
    temporary_folder,
    working,
    write_text,
)

HOLD = """
import sys
from pathlib import Path
from pcb.files import (
    atomic,
    intact_files,
    is_intact,
    load_npz,
    locked,
    save_hashed,
    save_npz,
    sweep,
    temporary_folder,
    working,
    write_text,
)
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
        if operation == __import__("fcntl").LOCK_EX:  # the blocking call
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


def test_a_lock_is_usable_by_other_users_under_any_umask(tmp_path):
    before = os.umask(0o077)
    try:
        with locked(tmp_path / "shared/.lock", "the index"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared/.lock").stat().st_mode) == 0o666


def test_a_read_only_lock_of_another_user_still_locks(tmp_path, monkeypatch):
    path, opened = tmp_path / ".lock", os.open
    path.write_text("process 1 on host")

    def refuse_writing(file, flags, *rest):
        if file == path and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, flags, *rest)

    monkeypatch.setattr("pcb.files.os.open", refuse_writing)
    with locked(path, "the index"):
        assert path.read_text() == "process 1 on host"
        with pytest.raises(UserError, match="process 1 on host"), locked(path, "the index"):
            pass


def test_a_file_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr("pcb.files.os.fsync", lambda fd: events.append(os.fstat(fd).st_ino))
    replace = os.replace
    monkeypatch.setattr("pcb.files.os.replace", lambda *a: (events.append("name"), replace(*a)))
    write_text(tmp_path / "a.txt", "one")
    assert events == [(tmp_path / "a.txt").stat().st_ino, "name", tmp_path.stat().st_ino]
    events.clear()
    with atomic(tmp_path / "b.txt", durable=False) as temporary:
        temporary.write_text("two")
    assert events == ["name"]


def test_files_have_the_user_s_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_damage_to_an_npz_is_an_error_or_changes_nothing(tmp_path):
    path, arrays = tmp_path / "a.npz", {"m": np.arange(12.0).reshape(3, 4), "name": "x"}
    digest = save_npz(path, **arrays)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    damaged = [whole[: len(whole) // 2], b"", b"\x93NUMPY", b"PK", b"<html>"]
    for position in rng.integers(0, len(whole), 200):
        data = bytearray(whole)
        data[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(data))
    for data in damaged:
        path.write_bytes(data)
        try:
            found = load_npz(path, "run it again")
        except UserError as error:
            assert str(path) in error.what and error.fix == "run it again"
        else:  # a date in a header, for instance
            assert all(np.array_equal(found[key], arrays[key]) for key in found)
        with pytest.raises(UserError, match="damaged"):
            load_npz(path, "run it again", digest)


def test_a_file_named_by_its_digest_replaces_the_one_before(tmp_path):
    path = tmp_path / "a.npz"
    one = save_hashed(path, lambda file: file.write_text("one"))
    two = save_hashed(path, lambda file: file.write_text("two"))
    assert list(tmp_path.iterdir()) == intact_files(path) == [two] and one != two
    two.write_text("twO")
    assert intact_files(path) == [] and not is_intact(one)


def test_what_a_killed_process_left_unfinished_is_swept(tmp_path):
    code = (
        "import os, sys\nfrom pcb.files import atomic\n"
        "with atomic(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    target = tmp_path / "runs/seed0/run.json"
    subprocess.run([sys.executable, "-c", code, target], check=False)
    (left,) = target.parent.iterdir()
    write_text(tmp_path / "runs/whole.json", "{}")
    assert left.name.startswith(".tmp-") and sweep(tmp_path) == 0  # it may still be written
    os.utime(left, (0, 0))
    assert sweep(tmp_path) == 1
    assert [path.name for path in tmp_path.rglob("*.json")] == ["whole.json"]


def test_temporary_folders_of_killed_processes_are_removed_and_those_in_use_kept(
    tmp_path, monkeypatch
):
    code = (
        "import os, sys\nfrom pcb.files import temporary_folder\n"
        "with temporary_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'a').touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    (left,) = tmp_path.iterdir()
    with temporary_folder(tmp_path):
        assert left.exists()  # young: its process might not hold its lock yet
        now = time.time()
        monkeypatch.setattr("pcb.files.time.time", lambda: now + 120)
        with temporary_folder(tmp_path):
            assert not left.exists() and len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []


REGISTER = """
import sys
from pathlib import Path
from pcb.files import registered
with registered(Path(sys.argv[1]), "`pcb train RUN`"):
    print("works", flush=True)
    sys.stdin.readline()
"""


def test_a_registered_process_counts_as_working_until_it_ends_even_by_a_kill(tmp_path):
    command = [sys.executable, "-c", REGISTER, str(tmp_path / "jobs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"works\n"
        (found,) = working(tmp_path / "jobs")
        assert found.startswith(f"`pcb train RUN`, process {process.pid} on ")
        process.kill()
        process.wait()
    assert working(tmp_path / "jobs") == [] == list((tmp_path / "jobs").iterdir())
    assert working(tmp_path / "nowhere") == []
