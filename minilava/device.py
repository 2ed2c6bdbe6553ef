"""Where, in which precision and on how many threads to compute: the meaning of ``auto``, in every command."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from minilava.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto is bfloat16 where the matrix units take it (CUDA, AMX, AVX512-BF16), else float32."""
    if name == "auto":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private in torch, hence the default
        fast = device.type == "cuda" or any(getattr(torch.cpu, p, lambda: False)() for p in probes)
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise UserError(f"--dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise UserError("--dtype float16 is not run on a CPU (it is hundreds of times slower there); use float32")
    return DTYPES[name]


def check_simd() -> None:
    """UserError where MINILAVA_SIMD asks for instructions that are unknown or that this CPU lacks."""
    try:
        from minilava._C import simd_level
    except ImportError:
        return
    try:
        simd_level()
    except ValueError as e:
        raise UserError(f"MINILAVA_SIMD: {e}") from None


def use_threads(number: int | None) -> None:
    """Let this process's one pool, PyTorch's and the native kernels', have so many threads; None: what
    OMP_NUM_THREADS says, else cores()."""
    if number is not None and number < 1:
        raise UserError("--threads must be at least 1")
    if number or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(number or cores())


def cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may use: two threads of a core share its vector units, so one is enough; cores
    that it is not pinned to and processor time that its cgroup withholds do not count."""
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    number = len({_read(root / siblings.format(cpu)) or str(cpu) for cpu in own})
    return max(1, min(number, int(_quota(root))))


def _quota(root: Path) -> float:
    """Cores' worth of time that the cgroup of this process, or one above it, allows (version 2, else 1)."""
    limits = [float("inf")]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for folder in (Path(path), *Path(path).parents):
            if not controllers:  # version 2
                quota, period = (_read(root / f"sys/fs/cgroup{folder}/cpu.max").split() or ["max", "1"])[:2]
            elif "cpu" in controllers.split(","):
                base = root / f"sys/fs/cgroup/{controllers}{folder}"
                quota, period = _read(base / "cpu.cfs_quota_us") or "-1", _read(base / "cpu.cfs_period_us") or "1"
            else:
                continue
            if quota not in ("max", "-1"):
                limits.append(int(quota) / int(period))
    return min(min(limits), 1 << 20)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
