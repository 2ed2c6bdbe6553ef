"""How many threads: cores, not their hyperthreads, of those this process may use."""

import os
import subprocess
import sys

import pytest
import torch

from minilava.device import cores, use_threads
from minilava.errors import UserError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """write(file, text) for files of a made-up machine of eight processors, two to a core."""

    def write(name, text):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    for cpu in range(8):
        write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path, write


def test_physical_cores(machine, monkeypatch):
    root, _ = machine
    assert cores(root) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert cores(root) == 2
    assert cores(root / "nothing") == 3  # without a word on siblings every processor is a core


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/job\n1:memory:/job\n",
          "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n",
          "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"}, 3),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/job\n",
          "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)  # fmt: skip
def test_what_a_cgroup_allows(machine, files, expected):
    root, write = machine
    for name, text in files.items():
        write(name, text)
    assert cores(root) == expected


@pytest.mark.parametrize("args", [["generate", "--prompt", "hi"], ["train", "stage.yaml"], ["doctor"]])
def test_an_unknown_instruction_set_is_named(args):
    pytest.importorskip("minilava._C")
    command = [sys.executable, "-m", f"minilava.{args[0]}", *args[1:]]
    done = subprocess.run(command, env=os.environ | {"MINILAVA_SIMD": "avx999"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("minilava: error: MINILAVA_SIMD: unknown SIMD level 'avx999': use ")
    assert len(done.stderr.splitlines()) == 1


def test_use_threads(monkeypatch):
    before = torch.get_num_threads()
    try:
        use_threads(3)
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        use_threads(None)
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        use_threads(None)
        assert torch.get_num_threads() == cores()
        with pytest.raises(UserError):
            use_threads(0)
    finally:
        torch.set_num_threads(before)
