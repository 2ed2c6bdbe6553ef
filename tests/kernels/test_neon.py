"""linear_i8 with NEON's dot product, cross-compiled and run on an emulated processor: the bits of the portable kernel.

Needs ``apt-get install g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user``.
"""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from minilava_kernels.linear_i8 import linear_i8, pack

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not shutil.which(COMPILER) or not shutil.which(EMULATOR):
        pytest.skip(f"needs {COMPILER} and {EMULATOR}")
    target = tmp_path_factory.mktemp("neon") / "linear_i8"
    sources = [HERE / "linear_i8.cpp", CSRC / "cpu" / "linear_i8.cpp", CSRC / "cpu" / "simd.cpp"]
    flags = ["-O2", "-std=c++17", "-fopenmp", "-ffp-contract=off", "-static", "-march=armv8.2-a+dotprod", f"-I{CSRC}"]
    subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(target)], check=True)
    listing = subprocess.run(["aarch64-linux-gnu-objdump", "-d", str(target)], check=True, capture_output=True)
    assert b"sdot" in listing.stdout
    return target


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 16, 64), (5, 33, 200), (13, 7, 1000)])
def test_the_same_bits_as_the_portable_kernel(program, m, n, k, bits):
    _C = pytest.importorskip("minilava._C")
    x, p = torch.randn(m, k), pack(torch.randn(n, k), bits)
    padded = p.scales.shape[1] * p.group
    given = struct.pack("6q", m, n, k, padded, p.group, bits)
    given += b"".join(bytes(t.contiguous().view(torch.uint8).flatten().tolist()) for t in (x, p.values, p.scales))
    said = subprocess.run([EMULATOR, str(program)], input=given, check=True, capture_output=True).stdout
    _C.set_simd("portable")
    try:
        expected = linear_i8(x, p, impl="native")
    finally:
        _C.set_simd("auto")
    assert torch.equal(torch.frombuffer(bytearray(said), dtype=torch.float32).view(m, n), expected)
