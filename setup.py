"""Builds minilava._C (C++17, OpenMP) and, where nvcc is found, minilava._cuda. See pyproject.toml for the rest.

MINILAVA_CUDA: auto (default; a missing nvcc or a failed CUDA build is reported and passed over), 1 (either is an
error), 0 (no CUDA extension).
"""

import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup
from setuptools.modified import newer_group

ParallelCompile(default=2).install()

CUDA = os.environ.get("MINILAVA_CUDA", "auto")
if CUDA not in ("auto", "0", "1"):
    sys.exit(f"MINILAVA_CUDA={CUDA!r}: use auto, 0 or 1")

HEADERS = sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inc", recursive=True))
QUIET = ["-Wno-maybe-uninitialized"]  # gcc 12 finds that in its own intrinsics' headers
CUDA_SOURCES = sorted(glob("csrc/cuda/*.cu"))
# Code for the A100 and H100 families, and PTX that newer GPUs compile for themselves.
GENCODE = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
]


def extension(name, sources, **extra):
    return Pybind11Extension(
        name,
        sources=sources,
        depends=[*HEADERS, *CUDA_SOURCES],
        include_dirs=["csrc"],
        cxx_std=17,
        # No contraction: fused multiply-adds are written where they are meant, and the rest keeps its bits anywhere.
        # No -march: every SIMD path is compiled by its own target pragma and chosen at run time.
        extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", *QUIET],
        extra_link_args=["-fopenmp"],
        **extra,
    )


def cuda_home():
    """The toolkit's folder: nvcc's own word for it, since the nvcc on PATH can be a wrapper script elsewhere."""
    dry = subprocess.run(["nvcc", "--dryrun", "x.cu"], capture_output=True, text=True)
    for line in (dry.stderr + dry.stdout).splitlines():
        name, _, value = line.removeprefix("#$ ").partition("=")
        if name.strip() == "TOP":
            return Path(value.strip())
    raise RuntimeError("nvcc --dryrun names no TOP folder")


class Build(build_ext):
    """Compiles the .cu files with nvcc and has setuptools link them with cudart, static: no library to find later."""

    def build_extension(self, ext):
        if ext.name != "minilava._cuda":
            return super().build_extension(ext)
        try:
            home, objects = cuda_home(), []
            for source in CUDA_SOURCES:
                target = Path(self.build_temp, source).with_suffix(".o")
                target.parent.mkdir(parents=True, exist_ok=True)
                flags = ["-O3", "-std=c++17", "-Icsrc", "-Xcompiler=-fPIC,-fvisibility=hidden", "-cudart=static"]
                if newer_group([source, *HEADERS], str(target)):
                    subprocess.run(["nvcc", "-c", source, "-o", str(target), *flags, *GENCODE], check=True)
                objects.append(str(target))
            folders = ("lib64", "lib", "targets/x86_64-linux/lib")
            cudart = next(c for f in folders if (c := home / f / "libcudart_static.a").exists())
            ext.extra_objects = [*objects, str(cudart)]
            ext.libraries = ["dl", "rt", "pthread"]
            super().build_extension(ext)
        except Exception as error:
            if CUDA == "1":
                raise
            print(f"minilava: going on without minilava._cuda: {error!r}", file=sys.stderr)
            ext.optional = True  # so that an in-place build does not look for the file


extensions = [extension("minilava._C", [*sorted(glob("csrc/cpu/*.cpp")), "csrc/binding.cpp"])]
if CUDA != "0":
    if shutil.which("nvcc"):
        extensions.append(extension("minilava._cuda", sorted(glob("csrc/cuda/*.cpp"))))
    elif CUDA == "1":
        sys.exit("MINILAVA_CUDA=1, but nvcc is not on PATH")
    else:
        print("minilava: no nvcc on PATH, so minilava._cuda is not built")

setup(ext_modules=extensions, cmdclass={"build_ext": Build})
