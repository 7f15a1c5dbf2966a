"""One job on several GPUs of a machine: a launcher starts a rank for each, and they join a group.

The launcher passes SIGTERM and Ctrl-C on to its ranks, waits until they have saved and ended, and
ends with their status: 143 or 130 after a stop on request. torchrun would kill them 30 seconds
after a signal, always end with status 1, and leave them running when it is killed itself. Ranks
that torchrun started can join all the same.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pcb.cluster.gpus import lease
from pcb.files import temporary_folder

FOLDER = "PCB_RANKS"  # variable with the folder in which ranks note failures; set in a rank
LISTENER = "PCB_LISTENER"  # variable with the descriptor of rank 0's listening socket
# Seconds that the other ranks get to end after the first one has failed, or has stopped on request.
GRACE, GRACE_OF_STOP = 5.0, 60.0
TAIL = 40  # printed lines of the output of a rank that failed
CRASHES = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT}
PR_SET_PDEATHSIG = 1


@contextmanager
def ranks(
    gpus: int, device: str, arguments: list[str], backend: str | None = None
) -> Generator[None]:
    """Run the body on `gpus` leased GPUs, once for each of them.

    With several GPUs, the first process runs `pcb ARGUMENTS` again as each rank and exits with
    their status; a rank joins the others and runs the body.

    Args:
        gpus: Number of GPUs; 0 runs the body once, without any.
        device: The scale's device, "cuda" or "cpu".
        arguments: Arguments of this command, after `pcb`.
        backend: See `join`.
    """
    if is_rank():
        try:
            join(device, backend)
            yield
        except Exception:
            note_failure()
            raise
        return
    with lease(gpus):
        if gpus > 1:
            raise SystemExit(launch(gpus, [sys.executable, "-m", "pcb", *arguments]))
        yield


def is_rank() -> bool:
    """Whether a launcher, or torchrun, started this process."""
    return FOLDER in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def join(device: str, backend: str | None = None) -> None:
    """Join the other ranks, before anything asks for the world size.

    Args:
        device: "cuda", where each rank takes a GPU of its own, or "cpu".
        backend: Of the process group; None: NCCL with GPUs, else gloo.
    """
    import torch  # here, because `launch` and `is_rank` are called by processes without torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = backend or ("nccl" if device == "cuda" else "gloo")
    if FOLDER not in os.environ:  # torchrun
        dist.init_process_group(backend)
        return
    # gloo would otherwise look up the machine's name, which may lead nowhere.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # The port is taken since the launcher chose it, so that no other process can take it.
    listener = int(os.environ[LISTENER]) if rank == 0 else None
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world,
        is_master=rank == 0,
        master_listen_fd=listener,
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)


def note_failure() -> None:
    """Note for the launcher when this rank failed, since others fail in consequence."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / f"failed{os.environ['RANK']}").touch()


def launch(count: int, command: Sequence[str]) -> int:
    """Run a command as `count` ranks and wait for them.

    Rank 0 writes to this process's output. That of another rank is printed if it is the first to
    fail. The ranks end with this process, even where it is killed. The threads of the job
    (`OMP_NUM_THREADS`) are divided among them.

    Returns:
        0, or the status of the rank that failed first; 128 + n of one that signal n ended.
    """
    with temporary_folder() as folder:
        job = Job(count, command, folder)
        try:
            job.start()
            return job.wait()
        finally:
            job.kill()
            job.restore_signals()


class Job:
    """The ranks of a command, as `launch` describes them.

    Attributes:
        processes: The ranks that were started, in order.
        statuses: Rank -> status as the shell counts it, of the ranks that ended.
        requested: Number of the signal by which the job was asked to end; 0: it was not.
    """

    def __init__(self, count: int, command: Sequence[str], folder: Path) -> None:
        self.count, self.command, self.folder = count, list(command), folder
        self.processes: list[subprocess.Popen] = []
        self.statuses: dict[int, int] = {}
        self.requested = 0
        self.crashed = False
        self.killed: set[int] = set()  # ranks that this process killed
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self.previous = {number: signal.signal(number, self.stop) for number in numbers}

    def restore_signals(self) -> None:
        """Restore the handlers of this process."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def stop(self, number: int, _=None) -> None:
        """Pass a signal on to the ranks; those in the terminal's group got Ctrl-C already."""
        self.requested = number
        for process in self.processes:
            process.send_signal(number)

    def start(self) -> None:
        """Start the ranks."""
        sys.stdout.flush()
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS", self.count)) // self.count)
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            shared = {
                FOLDER: str(self.folder),
                LISTENER: str(listener.fileno()),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(listener.getsockname()[1]),
                "WORLD_SIZE": str(self.count),
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),  # which MMEngine sets otherwise, with a warning
            }
            for rank in range(self.count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                output = open(self.output(rank), "wb") if rank else None  # noqa: SIM115
                process = subprocess.Popen(
                    self.command,
                    env={**os.environ, **shared, **own},
                    stdout=output,
                    stderr=output and subprocess.STDOUT,
                    pass_fds=() if rank else (listener.fileno(),),
                    preexec_fn=lambda: libc and libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
                )
                self.processes.append(process)
                if output:
                    output.close()
                if self.requested:  # a signal that came before the process was in the list
                    process.send_signal(self.requested)

    def output(self, rank: int) -> Path:
        """The file with what a rank other than 0 wrote."""
        return self.folder / f"rank{rank}.log"

    def wait(self) -> int:
        """Wait for all ranks; return the job's status. See `launch`."""
        deadline = None
        while len(self.statuses) < self.count:
            time.sleep(0.05)
            for rank, process in enumerate(self.processes):
                if rank not in self.statuses and process.poll() is not None:
                    code = process.returncode
                    self.statuses[rank] = code if code >= 0 else 128 - code
                    self.crashed |= code in CRASHES
            if deadline is None and any(self.statuses.values()):
                deadline = time.monotonic() + (GRACE_OF_STOP if self.requested else GRACE)
            # Without a crashed rank the others would wait for it in a collective.
            if deadline is not None and (self.crashed or time.monotonic() > deadline):
                self.kill()
        failed = [rank for rank, status in self.statuses.items() if status]
        if not failed:
            return 0
        first = min(set(failed) - self.killed or failed, key=self.moment_of_failure)
        if not self.requested:
            self.report(first)
        return self.statuses[first]

    def moment_of_failure(self, rank: int) -> float:
        """When a rank failed, in seconds since the epoch; 0 where it was killed."""
        note = self.folder / f"failed{rank}"
        if note.exists():
            return note.stat().st_mtime
        # NCCL aborts a rank whose partner is gone.
        return time.time() if self.statuses[rank] == 128 + signal.SIGABRT else 0.0

    def report(self, rank: int) -> None:
        """Print why a rank failed, last, where the log does not end with it already."""
        status = self.statuses[rank]
        if rank == 0 or self.statuses.get(0) == 2:  # its output has been printed
            return
        how = f"ended with status {status}"
        if status > 128:
            how = f"was killed by signal {status - 128}, perhaps because memory ran out"
        print(f"rank {rank} of {self.count} {how}; its last output:", file=sys.stderr)
        lines = self.output(rank).read_text(errors="replace", encoding="utf-8").splitlines()
        print("\n".join(lines[-TAIL:]), file=sys.stderr, flush=True)

    def kill(self) -> None:
        """Kill the ranks that still run."""
        for rank, process in enumerate(self.processes):
            if process.poll() is None:
                process.kill()
                self.killed.add(rank)
