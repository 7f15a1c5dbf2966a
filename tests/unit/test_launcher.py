"""A job of several ranks: their group, its status after a stop or a failure, and its output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pcb.cluster import launcher

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = """
    import sys
    from pcb.cluster import launcher
    raise SystemExit(launcher.launch(2, [sys.executable, {rank!r}]))
"""
STOPPABLE = """
    import signal, sys, time
    stop = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: stop.append(number))
    Path(f"ready{rank}").touch()
    while not stop:
        time.sleep(0.01)
    time.sleep(0.5)  # saving
    Path(f"saved{rank}").touch()
    sys.exit(128 + stop[0])
"""


class Ranks:
    """Two ranks that run `code`, started by a process of their own."""

    def __init__(self, folder: Path, code: str) -> None:
        self.folder = folder
        prelude = "import os\nfrom pathlib import Path\nrank = int(os.environ['RANK'])\n"
        (folder / "rank.py").write_text(prelude + textwrap.dedent(code))
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(LAUNCH.format(rank=str(folder / "rank.py")))],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "6"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, *names: str) -> None:
        deadline = time.monotonic() + 30
        while not all((self.folder / name).exists() for name in names):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.02)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "launcher alone"])
def test_a_stop_ends_with_its_status_after_all_ranks_have_saved(tmp_path, number, whole_group):
    job = Ranks(tmp_path, STOPPABLE)
    job.wait_for("ready0", "ready1")
    (os.killpg if whole_group else os.kill)(job.process.pid, number)
    status, _, err = job.end()
    assert status == 128 + number and not err
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


def test_a_stop_before_the_ranks_listen_ends_with_its_status(tmp_path):
    job = Ranks(tmp_path, "Path(f'ready{rank}').touch(); import time; time.sleep(60)")
    job.wait_for("ready0", "ready1")
    job.process.terminate()
    assert job.end()[0] == 143


def test_ranks_join_and_share_the_threads(tmp_path):
    job = Ranks(
        tmp_path,
        """
        import torch
        import torch.distributed as dist
        from pcb.cluster import launcher
        assert launcher.is_rank() and os.environ["OMP_NUM_THREADS"] == "3"
        launcher.join("cpu")
        total = torch.tensor([rank + 1.0])
        dist.all_reduce(total)
        print("rank", rank, "total", total.item())
        """,
    )
    assert job.end() == (0, "rank 0 total 3.0\n", "")


def test_the_first_of_several_failures_is_shown_last(tmp_path):
    """Rank 0 fails in consequence, and its process ends first."""
    job = Ranks(
        tmp_path,
        """
        import time
        from pcb.cluster import launcher
        launcher.join = lambda device, backend: None
        with launcher.ranks(2, "cpu", []):
            if rank == 1:
                try:
                    raise ValueError("the cause")
                finally:
                    Path("failing").touch()
            while not Path("failing").exists():
                time.sleep(0.01)
            time.sleep(0.3)
            raise RuntimeError("connection closed by peer")
        """,
    )
    status, _, err = job.end()
    assert status == 1
    assert err.index("closed by peer") < err.index("rank 1 of 2 ended with status 1")
    assert err.rstrip().endswith("ValueError: the cause")


def test_a_mistake_of_the_user_is_shown_once(tmp_path):
    job = Ranks(
        tmp_path, "import sys; print('error: what\\nfix: how', file=sys.stderr); sys.exit(2)"
    )
    assert job.end() == (2, "", "error: what\nfix: how\n")


def test_a_killed_rank_ends_the_job_at_once(tmp_path):
    code = "Path(f'pid{rank}').write_text(str(os.getpid())); import time; time.sleep(60)"
    job = Ranks(tmp_path, code)
    job.wait_for("pid0", "pid1")
    time.sleep(0.2)
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGKILL)
    began = time.monotonic()
    status, _, err = job.end()
    assert status == 137 and time.monotonic() - began < 5
    assert "rank 1 of 2 was killed by signal 9" in err


def test_ranks_end_with_a_launcher_that_is_killed(tmp_path):
    code = "Path(f'pid{rank}').write_text(str(os.getpid())); import time; time.sleep(60)"
    job = Ranks(tmp_path, code)
    job.wait_for("pid0", "pid1")
    time.sleep(0.2)
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in range(2)]
    job.process.kill()
    job.process.wait()
    deadline = time.monotonic() + 5
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, pids))


def test_a_rank_is_recognised(monkeypatch):
    for variable in (launcher.FOLDER, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(launcher.FOLDER, raising=False)
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        assert not launcher.is_rank()
        monkeypatch.setenv(variable, "x")
        assert launcher.is_rank()


def test_a_rank_joins_and_takes_no_lease_of_its_own(monkeypatch, tmp_path):
    joined = []
    monkeypatch.setattr(launcher, "join", lambda *arguments: joined.append(arguments))
    monkeypatch.setattr(launcher, "lease", None)
    monkeypatch.setenv(launcher.FOLDER, str(tmp_path))
    with launcher.ranks(8, "cuda", ["train"]):
        assert joined == [("cuda", None)]


def test_a_job_with_several_gpus_exits_with_the_status_of_its_ranks(monkeypatch, tmp_path):
    started = []

    def launch(count, command):
        started.append((count, command[1:]))
        return 143

    monkeypatch.setattr(launcher, "launch", launch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    with pytest.raises(SystemExit) as end, launcher.ranks(2, "cuda", ["train", "x"]):
        pass
    assert end.value.code == 143 and started == [(2, ["-m", "pcb", "train", "x"])]
