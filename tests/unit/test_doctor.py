"""`pcb doctor`: each problem of a machine is named with its fix, before a job dies of it."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from pcb import cli, files
from pcb.doctor import checks, report
from pcb.doctor.checks import Machine
from pcb.doctor.report import diagnose, of_study, require_gpus, text
from pcb.errors import UserError
from pcb.study import load_study

A100 = {"name": "NVIDIA A100", "memory": 85 * 10**9, "capability": [8, 0]}
V100 = {"name": "Tesla V100", "memory": 34 * 10**9, "capability": [7, 0]}


def gpu_machine(driver="580.65.06", gpus=1, gpu=A100, **probe) -> Machine:
    """A GPU machine on which all is well, but for `probe`."""
    machine = Machine(cuda=True, gpus=gpus)
    machine.probe = {
        "torch": "2.13.0+cu130",
        "cuda": "13.0",
        "architectures": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_120", "compute_120"],
        "gpus": [gpu] * gpus,
        "nccl": "2.29.7",
        "mmcv": "2.3.6",
        "operators": "13.0",
        "errors": {},
        "ran": ["cpu", "cuda:0"],
    } | probe
    listed = {"name": gpu["name"], "driver_version": driver}
    machine.driver = [listed] * gpus
    machine.shared_memory = 8 * 10**9
    return machine


def errors(machine: Machine, *names: str):
    return [finding for finding in diagnose(machine, names) if finding.status == "error"]


def only_error(machine: Machine, name: str):
    (finding,) = errors(machine)
    assert finding.check == name and finding.fix
    return finding


def test_a_machine_on_which_all_is_well_has_no_findings_but_ok():
    assert {finding.status for finding in diagnose(gpu_machine(gpus=8))} == {"ok"}


def test_a_driver_older_than_torchs_cuda_is_an_error_that_names_both_versions():
    finding = only_error(gpu_machine(driver="535.104.05"), "driver")
    assert "535.104.05" in finding.text and "580" in finding.text
    assert checks.CUDA_12_LOCK in finding.fix


def test_a_driver_too_old_for_the_second_lock_is_not_sent_there():
    assert checks.CUDA_12_LOCK not in only_error(gpu_machine(driver="470.57"), "driver").fix


def test_the_driver_of_cuda_12_suffices_for_a_torch_for_cuda_12():
    machine = gpu_machine(driver="535.104.05", cuda="12.8", operators="12.8")
    assert not errors(machine)


def test_a_gpu_older_than_torchs_kernels_is_an_error():
    finding = only_error(gpu_machine(gpu=V100), "gpus")
    assert "V100" in finding.text and "sm_75" in finding.text
    assert checks.CUDA_12_LOCK in finding.fix


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 0), False),
        ((12, 1), True),
        ((13, 0), True),
    ],
)
def test_binaries_run_within_a_major_version_and_ptx_on_all_later_ones(capability, runs):
    architectures = ["sm_75", "sm_86", "sm_90", "sm_120", "compute_120"]
    assert checks.runs_on(architectures, *capability) == runs


def test_a_cpu_build_of_torch_on_a_gpu_machine_is_an_error():
    machine = gpu_machine(torch="2.13.0+cpu", cuda=None, nccl=None)
    machine.probe["gpus"] = []
    finding = errors(machine, "torch")[0]
    assert "CPU build" in finding.text and "torch===2.13.0" in finding.fix


def test_operators_for_the_cpu_only_are_an_error_where_jobs_use_gpus():
    finding = only_error(gpu_machine(operators=None, ran=["cpu"]), "operators")
    assert "the CPU only" in finding.text and "FORCE_CUDA=1 make setup" in finding.fix


def test_operators_for_another_cuda_than_torchs_are_an_error():
    assert "12.8" in only_error(gpu_machine(operators="12.8"), "operators").text


def test_operators_without_kernels_for_a_gpu_are_an_error():
    problem = {"cuda:0": "RuntimeError: no kernel image is available"}
    finding = only_error(gpu_machine(errors=problem), "operators")
    assert "no kernel image" in finding.text and "TORCH_CUDA_ARCH_LIST" in finding.fix


def test_operators_that_cannot_be_imported_are_an_error():
    problem = {"operators": "ImportError: undefined symbol"}
    assert "undefined symbol" in only_error(gpu_machine(errors=problem), "operators").text


def test_fewer_gpus_than_a_job_takes_are_an_error():
    machine = gpu_machine()
    machine.gpus = 8
    finding = only_error(machine, "gpus")
    assert "1 GPUs" in finding.text and "takes 8" in finding.text


def test_gpus_that_torch_does_not_see_are_an_error():
    machine = gpu_machine(gpus=1)
    machine.probe["gpus"] = []
    assert "torch finds no GPU" in only_error(machine, "gpus").text


def test_several_gpus_need_nccl():
    only_error(gpu_machine(gpus=2, nccl=None), "nccl")
    assert not errors(gpu_machine(gpus=1, nccl=None))


def test_a_small_shared_memory_is_a_warning():
    machine = gpu_machine()
    machine.shared_memory = 64 * 2**20
    (finding,) = [f for f in diagnose(machine) if f.status != "ok"]
    assert (finding.check, finding.status) == ("shm", "warning") and "--shm-size" in finding.fix


def test_a_gpu_that_a_cpu_scale_leaves_idle_is_no_error():
    machine = gpu_machine(operators=None, ran=["cpu"])
    machine.cuda = False
    found = diagnose(machine, ["torch", "driver", "gpus", "operators", "nccl"])
    assert {f.check for f in found if f.status != "ok"} == {"operators"}
    assert not errors(machine)


def test_a_probe_that_crashes_is_a_finding(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    machine = Machine(cuda=False)
    machine.driver = []
    assert [f.check for f in errors(machine)] == ["torch", "operators"]


def test_the_probe_runs_the_operators_of_this_environment():
    machine = Machine(cuda=False)
    assert machine.probe["errors"] == {} and machine.probe["ran"][0] == "cpu"
    assert machine.probe["mmcv"] and machine.probe["torch"]


def test_a_driver_listing_is_read_gpu_by_gpu(monkeypatch):
    listing = "NVIDIA A100-SXM4-80GB, 580.65.06, 8.0, 81920\nNVIDIA H100, 580.65.06, 9.0, 81559\n"
    monkeypatch.setattr(checks, "output", lambda *command: listing)
    assert [gpu["compute_cap"] for gpu in Machine(cuda=True).driver] == ["8.0", "9.0"]


# The study ------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    return load_study("smoke", overrides={"results": str(tmp_path / "results")})


def test_a_study_that_can_be_run_here_has_no_errors(study):
    found = diagnose(of_study(study), list(checks.STUDY))
    assert [f.check for f in found if f.status == "error"] == []
    assert not study.paths.root.exists()  # nothing is left behind


def test_a_file_system_that_grants_a_lock_twice_is_an_error(study, monkeypatch):
    monkeypatch.setattr(files, "try_lock", lambda descriptor: True)
    (finding,) = diagnose(of_study(study), ["results"])
    assert finding.status == "error" and "flock" in finding.text and "NFS" in finding.fix


def test_a_file_system_without_locks_is_an_error(study, monkeypatch):
    def fail(descriptor):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files, "try_lock", fail)
    (finding,) = diagnose(of_study(study), ["results"])
    assert finding.status == "error" and "Operation not supported" in finding.text


def test_missing_data_and_weights_are_named_with_the_command_that_fetches_them(tmp_path):
    machine = of_study(load_study("lvis", overrides={"results": str(tmp_path)}))
    found = diagnose(machine, ["data", "weights"])
    by_text = {finding.text: finding for finding in found}
    (v1,) = [f for t, f in by_text.items() if t.startswith("v1")]
    assert v1.status == "error" and "lvis_v1_train.json" in v1.text and "pcb download" in v1.fix
    assert any("resnet50-0676ba61.pth" in f.fix for f in found if f.check == "weights")


def test_a_full_disk_is_a_warning(study, monkeypatch):
    monkeypatch.setattr(
        checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=10, total=10)
    )
    machine = of_study(study)
    monkeypatch.setattr("pcb.planning.costs.Costs.bytes", lambda self, keys: 1e9)
    monkeypatch.setattr("pcb.planning.costs.Costs.work_bytes", lambda self: 1e9)
    (finding,) = diagnose(machine, ["disk"])
    assert finding.status == "warning" and finding.fix


# Output and jobs ------------------------------------------------------------------------------


def test_lines_fit_a_terminal_of_100_columns_and_each_problem_has_its_fix():
    machine = gpu_machine(driver="535.104.05", gpu=V100, operators=None, torch="2.13.0+cu130")
    lines = text(diagnose(machine)).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("error") for line in lines) == 3
    assert sum(line.strip().startswith("fix:") for line in lines) == 3
    assert lines[-1].endswith("3 errors")


def test_the_exit_status_tells_whether_anything_is_an_error(capsys, monkeypatch):
    assert cli.main(["doctor", "--device", "cpu", "--only", "python", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["errors"] == 0 and data["findings"][0]["check"] == "python"
    monkeypatch.setattr(checks, "PYTHONS", ((3, 1),))
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "--device", "cpu", "--only", "python"])
    assert stop.value.code == 1


def test_fixes_name_the_scale_that_was_asked_about(capsys):
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--scale", "lvis", "--only", "weights"])
    assert "--scale lvis" in " ".join(capsys.readouterr().out.split())


def test_a_job_on_a_gpu_stops_before_it_starts(tmp_path, monkeypatch, capsys):
    """Without the check it would train until its first NMS."""
    healthy = gpu_machine(operators=None).probe
    monkeypatch.setattr(Machine, "probe", healthy)
    monkeypatch.setattr(Machine, "driver", [{"driver_version": "580.65.06"}])
    monkeypatch.setattr("pcb.cluster.launcher.lease", lambda gpus: pytest.fail("took a lease"))
    run = next(iter(load_study("midi").experiments))
    for verb in ("train", "infer", "confusion"):
        status = cli.main([verb, run, "--scale", "midi", "--results", str(tmp_path)])
        printed = capsys.readouterr().err
        assert status == 2 and "compiled for the CPU only" in printed and "make setup" in printed


def test_jobs_on_a_cpu_and_ranks_are_not_checked(monkeypatch):
    monkeypatch.setattr(report, "diagnose", lambda *arguments: pytest.fail("checked"))
    require_gpus(load_study("smoke"), 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    require_gpus(load_study("lvis"), 8)


def test_a_job_that_dies_of_several_causes_names_them_all(monkeypatch):
    monkeypatch.setattr(Machine, "probe", gpu_machine(operators=None, nccl=None).probe)
    monkeypatch.setattr(Machine, "driver", [{"driver_version": "580.65.06"}])
    with pytest.raises(UserError) as error:
        require_gpus(load_study("lvis"), 2)
    assert "NCCL" in error.value.what and "compiled for the CPU only" in error.value.what
