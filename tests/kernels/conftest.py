"""The loop over instruction sets, one seed, and one thread unless a test asks for more."""

import pytest
import torch


@pytest.fixture(params=["portable", "avx2", "avx512"])
def simd(request):
    """Runs a test once per instruction set this CPU has."""
    _C = pytest.importorskip("minilava._C")
    try:
        _C.set_simd(request.param)
    except ValueError:
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    _C.set_simd("auto")


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    """Waking threads for tiny inputs is slow on a busy machine; tests of threading choose their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
