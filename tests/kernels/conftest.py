"""Runs a test once per instruction set."""

import pytest


@pytest.fixture(params=["portable", "avx2", "avx512"])
def simd(request):
    from minilava import _C

    before = _C.simd_level()
    try:
        _C.set_simd(request.param)
    except ValueError:
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    _C.set_simd(before)
