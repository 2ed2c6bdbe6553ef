"""Fuzzes the CPU extension under AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m tests.sanitize --seconds 300            # what it drew, and a report, if there is one
    python -m tests.sanitize --seed 1 --case 4711     # again what failed

Builds the extension a second time, into build/sanitize/, where it is found again as long as csrc/ is the same.
"""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build/sanitize"
CXX = os.environ.get("CXX", "g++")
# As in setup.py but for the level of optimisation, which keeps reports readable and each file's time to seconds.
FLAGS = ["-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden", "-w", "-O1", "-g1",
         "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]  # fmt: skip
TORCH = Path(importlib.util.find_spec("torch").origin).parent  # has pybind11's headers, which only a build needs
INCLUDE = [f"-I{p}" for p in ("csrc", TORCH / "include", sysconfig.get_paths()["include"])]


def runtime(name):
    """A library of the compiler's, or None."""
    done = subprocess.run([CXX, f"-print-file-name={name}"], capture_output=True, text=True)
    path = Path(done.stdout.strip())
    return path.resolve() if path.is_absolute() and path.exists() else None


def missing():
    """Why there can be no sanitized build here, or None."""
    try:
        lacks = [n for n in ("libasan.so", "libubsan.so", "libstdc++.so") if runtime(n) is None]
    except FileNotFoundError:
        return f"no {CXX}"
    return f"{CXX} has no {' and no '.join(lacks)}" if lacks else None


def build():
    """The sanitized extension, compiled where its sources are new."""
    sources = [*sorted((ROOT / "csrc/cpu").glob("*.cpp")), ROOT / "csrc/binding.cpp"]
    headers = [p for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in (".h", ".inc")]
    text = b"".join(p.read_bytes() for p in [*sources, *headers])
    library = BUILD / f"_C-{digest(text)}.so"
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock, ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", 2))) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            objects = list(pool.map(compiled, sources))
            made([CXX, *FLAGS, "-shared", *objects], library)
            for old in {*BUILD.glob("*.*o")} - {library, *objects}:
                old.unlink()
    return library


def compiled(source):
    """Its object file, found by what the preprocessor makes of it: a header that changed concerns few sources."""
    source = source.relative_to(ROOT)  # so in reports
    text = subprocess.run([CXX, *FLAGS, *INCLUDE, "-E", source], cwd=ROOT, check=True, capture_output=True).stdout
    target = BUILD / f"{source.stem}-{digest(text)}.o"
    if not target.exists():
        print(f"sanitize: compiling {source.name}", file=sys.stderr)
        made([CXX, *FLAGS, *INCLUDE, "-c", source], target)
    return target


def digest(text):
    version = subprocess.run([CXX, "--version"], capture_output=True).stdout
    return hashlib.sha256(b"\0".join((text, version, " ".join(FLAGS).encode(), sys.version.encode()))).hexdigest()[:16]


def made(command, target):
    """Whole or absent."""
    part = target.with_suffix(".part")
    subprocess.run([*command, "-o", part], cwd=ROOT, check=True)
    os.replace(part, target)


def environment():
    """libstdc++ is loaded early too, or the sanitizer would miss __cxa_throw. What CPython never frees is no leak of
    ours. Redzones are wide, for steps of a row; memory comes full of 255, which is NaN, or an index of -1."""
    address = "detect_leaks=0:redzone=512:max_malloc_fill_size=1000000000:malloc_fill_byte=255:quarantine_size_mb=64"
    return os.environ | {
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        "ASAN_OPTIONS": address,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_WAIT_POLICY": "passive",
    }


def fixed_addresses():
    """Where that is allowed. Random ones of newer kernels collide with the shadow memory of older compilers."""
    ctypes.CDLL(None).personality(0x0040000)


def fuzz(library, *options):
    """(exit status, last line) of tests/fuzz.py, whose every line says what comes next; reports go to stderr."""
    command = [sys.executable, "-m", "tests.fuzz", "--extension", library, *options]
    how = {"cwd": ROOT, "env": environment(), "preexec_fn": fixed_addresses, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **how) as child:
        last = deque(child.stdout, maxlen=1)
    return child.returncode, "".join(last).strip()


def main():
    if reason := missing():
        sys.exit(f"sanitize: {reason}")
    status, last = fuzz(build(), *sys.argv[1:])
    print(f"sanitize: {'failed at ' if status else ''}{last}")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
