"""Every Triton kernel in every launchable form, compiled for the GPUs that the package is for."""

import json
import os
import pkgutil
import subprocess
import sys

import pytest

import minilava_kernels.gpu
from bench.aot import problems

OPERATIONS = sorted(m.name for m in pkgutil.iter_modules(minilava_kernels.gpu.__path__))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_compiles_without_spills(arch, operation, tmp_path):
    run = compiled(operation, arch, tmp_path)
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)["rows"]
    assert rows and not [p for r in rows for p in problems(r, arch)]
    if operation == "attention" and arch == 90:
        assert all(r["HGMMA"] for r in rows if r["dots"]), "Hopper's own tensor core instructions"


@pytest.mark.parametrize(
    "operation", ["attention", "cross_entropy", "norm", "pool", "projector", "rope_kv", "splice", "swiglu"]
)
def test_compiles_in_float64(operation, tmp_path):
    """Gradients are checked in float64, also on a GPU, for which the interpreter's word is not enough."""
    run = compiled(operation, 90, tmp_path, "--float64")
    assert run.returncode == 0, run.stderr
    assert all("float64" in row["variant"] for row in json.loads(run.stdout)["rows"])


def compiled(operation, arch, folder, *options):
    """In a process of its own: in this one Triton interprets."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, "-m", "bench.aot", "--arch", str(arch), "--only", operation, "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_problems_are_found():
    row = {"stack": 8, "LDL": 1, "STL": 2, "shared": 300_000, "dots": True, "HMMA": 0, "HGMMA": 0}
    assert len(problems(row, 90)) == 3
    assert not problems({"stack": 0, "LDL": 0, "STL": 0, "shared": 0, "dots": True, "HMMA": 1, "HGMMA": 0}, 80)
