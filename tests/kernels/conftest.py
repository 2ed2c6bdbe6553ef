"""The loop over instruction sets, poisoned memory, one seed, and one thread unless a test asks for more."""

import pytest
import torch


@pytest.fixture(params=["portable", "avx2", "avx512", "avx512_bf16"])
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


@pytest.fixture
def poisoned(monkeypatch):
    """new_empty gives NaN with NaN around it: what a kernel leaves out shows, and what is around must stay."""
    memories, real = [], torch.Tensor.new_empty

    def new_empty(self, *shape, dtype=None, **options):
        dtype = dtype or self.dtype
        if options or not dtype.is_floating_point:  # options: the interpreter's own
            return real(self, *shape, dtype=dtype, **options)
        size = torch.Size(shape if isinstance(shape[0], int) else shape[0])
        memory = self.new_full((size.numel() + 128,), float("nan"), dtype=dtype)
        memories.append(memory)
        return memory[64:-64].view(size)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    yield memories
    assert memories and all(m[:64].isnan().all() and m[-64:].isnan().all() for m in memories)


@pytest.fixture
def nan_filled(monkeypatch):
    """Memory that a kernel has to write comes full of NaN."""
    new_empty = torch.Tensor.new_empty

    def full(self, *args, **options):
        x = new_empty(self, *args, **options)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", full)
