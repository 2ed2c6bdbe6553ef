"""Builds minilava._C (C++17, OpenMP) and, where nvcc is found, minilava._cuda. See pyproject.toml for the rest."""

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

ParallelCompile(default=2).install()

cpu = Pybind11Extension(
    "minilava._C",
    sources=["csrc/binding.cpp", "csrc/cpu/preprocess.cpp"],
    depends=[],
    include_dirs=["csrc"],
    cxx_std=17,
    # No -march: every SIMD path is compiled by its own target pragma and chosen at run time.
    extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra"],
    extra_link_args=["-fopenmp"],
)

setup(ext_modules=[cpu])
