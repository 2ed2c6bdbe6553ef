"""python -m minilava.doctor: every operation named with a reason, here and as it would be on a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from minilava import doctor

KERNELS = Path(__file__).parents[1] / "kernels"


def test_command():
    run = subprocess.run([sys.executable, "-m", "minilava.doctor"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"torch           {torch.__version__}" in run.stdout and "cross_entropy" in run.stdout
    bad = subprocess.run([sys.executable, "-m", "minilava.doctor", "--all"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.startswith("minilava: error: ")


def test_json_has_every_operation():
    run = subprocess.run([sys.executable, "-m", "minilava.doctor", "--json"], capture_output=True, text=True)
    found = json.loads(run.stdout)
    for rows in found["operations"].values():
        assert all(row["runs"] and row["why"] for row in rows)
        named = " ".join(row["operation"] for row in rows)
        for path in KERNELS.glob("*.py"):
            assert path.stem in ("ops", "cached8") or path.stem in named.replace("rms norm", "norm"), path.stem


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu(dtype):
    with FakeTensorMode():
        found = doctor.operations(torch.device("cuda"), dtype)
    facts = doctor.machine()
    assert all(doctor.why("cuda", operation, runs, facts) for operation, runs in found.items())
    for operation in ("pool", "splice", "rope_kv", "rms norm", "layer norm", "swiglu", "cross_entropy", "sample"):
        assert found[operation] == "triton", operation
    assert found["decode_attention"] == "decode"


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(doctor, "_native", lambda: None)
    facts = doctor.machine()
    assert "not built" in doctor.why("cpu", "swiglu", "reference", facts)
    assert any("reinstall" in line for line in doctor.advice(facts))
