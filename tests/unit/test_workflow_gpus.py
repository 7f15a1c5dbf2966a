"""Leases on GPUs, with imaginary devices."""

import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from pcb.cluster import gpus
from pcb.errors import UserError

DEVICES = {"0": "GPU-a", "1": "GPU-b", "2": "GPU-c"}


def holder(folder, count):
    """Another process that holds `count` devices; returned once it has named them."""
    code = f"""
        import sys
        from pathlib import Path
        from pcb.cluster.gpus import lease
        with lease({count}, {DEVICES!r}, Path({str(folder)!r})) as ids:
            print(",".join(ids), flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.ids = process.stdout.readline().strip().split(",")
    return process


def test_two_processes_hold_different_devices(tmp_path):
    other = holder(tmp_path, 2)
    with gpus.lease(1, DEVICES, tmp_path) as ids:
        assert len(ids) == 1 and len(other.ids) == 2 and set(ids) | set(other.ids) == set(DEVICES)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ids[0]
    other.communicate()


def test_a_killed_process_releases_its_devices(tmp_path, capsys):
    other = holder(tmp_path, 3)
    with gpus.ExitStack() as held:
        assert not gpus.lock(tmp_path / "GPU-a.lock", held)
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    with gpus.lease(3, DEVICES, tmp_path) as ids:
        assert ids == ["0", "1", "2"]


def test_locks_are_usable_by_other_users_under_any_umask(tmp_path):
    before = os.umask(0o077)
    try:
        with gpus.lease(1, DEVICES, tmp_path / "locks"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "locks/GPU-a.lock").stat().st_mode) == 0o666


def test_a_waiting_job_holds_no_device(tmp_path, capsys, monkeypatch):
    other = holder(tmp_path, 2)
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        with gpus.lease(1, DEVICES, tmp_path):  # the third device is free while the job waits
            pass
        other.communicate()

    monkeypatch.setattr(gpus.time, "sleep", sleep)
    with gpus.lease(3, DEVICES, tmp_path) as ids:
        assert len(ids) == 3
    assert naps and "waiting for 3 of the GPUs" in capsys.readouterr().err


def test_more_devices_than_the_machine_has_are_an_error_at_once(tmp_path):
    with (
        pytest.raises(UserError, match="needs 4 GPUs, but only 3 are visible"),
        gpus.lease(4, DEVICES, tmp_path),
    ):
        pass


def test_the_environment_is_restored(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    with gpus.lease(1, {"2": "GPU-c", "1": "GPU-b"}, tmp_path):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,1"


def test_a_lease_on_no_gpu_changes_nothing(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with gpus.lease(0) as ids:
        assert ids == [] and "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("assigned", "names"),
    [
        (None, {"0": "GPU-1f-00", "1": "GPU-2e-01"}),
        ("1", {"1": "GPU-2e-01"}),
        ("1,0", {"1": "GPU-2e-01", "0": "GPU-1f-00"}),
        ("GPU-2e", {"GPU-2e": "GPU-2e-01"}),
        ("MIG-7c", {"MIG-7c": "MIG-7c"}),
        ("", {}),
        ("-1", {}),
    ],
)
def test_only_devices_that_a_scheduler_assigned_are_visible(tmp_path, monkeypatch, assigned, names):
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA X (UUID: GPU-1f-00)'\n"
        "echo 'GPU 1: NVIDIA X (UUID: GPU-2e-01)'\n"
    )
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if assigned is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", assigned)
    assert gpus.visible() == names


def test_mig_instances_replace_their_gpu(tmp_path, monkeypatch):
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA X (UUID: GPU-1f)'\n"
        "echo '  MIG 3g.20gb Device 0: (UUID: MIG-GPU-1f/1/0)'\n"
        "echo '  MIG 3g.20gb Device 1: (UUID: MIG-GPU-1f/2/0)'\n"
        "echo 'GPU 1: NVIDIA X (UUID: GPU-2e)'\n"
    )
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.visible() == {
        "MIG-GPU-1f/1/0": "MIG-GPU-1f_1_0",
        "MIG-GPU-1f/2/0": "MIG-GPU-1f_2_0",
        "1": "GPU-2e",
    }


def test_without_nvidia_smi_devices_come_from_the_driver(tmp_path, monkeypatch):
    for bus, uuid in (("0000:01:00.0", "GPU-1f-00"), ("0000:41:00.0", "GPU-2e-01")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t\t NVIDIA X\nGPU UUID: \t {uuid}\n")
    monkeypatch.setattr(gpus, "DRIVER", tmp_path)
    monkeypatch.setattr(gpus.shutil, "which", lambda program: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus.visible() == {"1": "GPU-2e-01"}


def test_a_lock_file_of_another_user_needs_no_write_permission(tmp_path):
    (tmp_path / "GPU-a.lock").touch(mode=0o444)
    with gpus.ExitStack() as held, gpus.ExitStack() as other:
        assert gpus.lock(tmp_path / "GPU-a.lock", held) and not gpus.lock(
            tmp_path / "GPU-a.lock", other
        )


def test_a_lease_survives_exec_and_ends_with_the_program(tmp_path):
    code = f"""
        import os
        from pathlib import Path
        from pcb.cluster.gpus import lease
        with lease(1, {DEVICES!r}, Path({str(tmp_path)!r})):
            os.execvp("sh", ["sh", "-c", "echo ready; exec sleep 60"])
    """
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout.readline() == "ready\n"
    with gpus.ExitStack() as held:
        assert not gpus.lock(tmp_path / "GPU-a.lock", held)
        program.kill()
        program.wait()
        assert gpus.lock(tmp_path / "GPU-a.lock", held)
