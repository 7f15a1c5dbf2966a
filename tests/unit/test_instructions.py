"""Results on a CPU do not depend on its vector instructions beyond AVX2."""

import os
import platform
import subprocess
import sys

import pytest

from pcb.cluster import instructions

X86, AVX512 = "flags\t\t: fpu sse4_2 avx avx2", "flags\t\t: fpu avx avx2 avx512f\n"


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """Poses as a machine with these flags; the variables are unset before and after."""
    for name in instructions.VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def poses(flags, machine="x86_64"):
        (tmp_path / "cpuinfo").write_text(flags)
        monkeypatch.setattr(instructions, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(platform, "machine", lambda: machine)

    return poses


@pytest.mark.parametrize("flags", [X86, AVX512])
def test_every_library_gets_the_same_instructions(cpu, flags):
    cpu(flags)
    instructions.use_same_instructions()
    assert {name: os.environ.get(name) for name in instructions.VARIABLES} == (
        instructions.VARIABLES
    )


@pytest.mark.parametrize(
    ("flags", "machine"), [("flags : fpu avx avx2x", "x86_64"), (X86, "aarch64"), ("", "x86_64")]
)
def test_a_cpu_without_avx2_keeps_its_own(cpu, flags, machine):
    cpu(flags, machine)
    instructions.use_same_instructions()
    assert not os.environ.keys() & instructions.VARIABLES.keys()


def test_what_the_user_has_set_stays(cpu, monkeypatch):
    cpu(AVX512)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    instructions.use_same_instructions()
    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx512"
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


@pytest.mark.skipif(not instructions.has_avx2(), reason="this CPU has no AVX2")
@pytest.mark.parametrize(("scale", "expected"), [("smoke", "True"), ("lvis", "False")])
def test_a_command_of_a_scale_on_a_cpu_computes_with_avx2(scale, expected):
    code = (
        "import argparse, contextlib\n"
        "from pcb.cli.selection import load\n"
        f"load(argparse.Namespace(verb='plan', scale='{scale}'))\n"
        "from pcb.cluster import instructions, provenance\n"
        "import os\n"
        "print(os.environ.items() >= instructions.VARIABLES.items())\n"
        "print(provenance.hardware('cpu')['instructions'])\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in instructions.VARIABLES}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    same, used = out.split()
    assert same == expected and (used == "AVX2" or scale == "lvis")
