"""A block of a quantised vision tower in one call, for a CPU: norms, products, attention and GELU of a few views at a
time.

Called one by one, the operations hand (V P, 4 D) floats on through memory, 9 MB for 81 pictures of the embedded model,
in pages that the system has to clear first; here they go through the caches. The kernels are those of norm, linear_i8
and attention, in the same order on the same numbers: the plain PyTorch statement is SigLIP's own block
(minilava/model/siglip.py). Rows are rounded once for the three matrices that multiply them.

V views, P patches of a view, D width, F inner width of the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, float32

from minilava_kernels.linear_i8 import Matrix, address
from minilava_kernels.ops import registered

try:
    from minilava import _C
except ImportError:
    _C = None


def free_scratch() -> None:
    """Give back what the calling thread keeps between calls of these blocks, of a decoder's and of attention: 20 MB
    after a picture of 729 patches. The next call takes it again."""
    if _C is not None:
        _C.free_scratch()


class EncoderBlock:
    """norms: weight and bias (D) of the first and of the second; matrices: q, k, v, out, fc1 and fc2 with their biases.
    ValueError where they do not fit. The tensors must not change afterwards."""

    def __init__(self, norms: Sequence[Tensor], matrices: Sequence[Matrix], heads: int, eps: float):
        panels = [p for p, _ in matrices]
        self.width = d = panels[0].k
        inner = panels[4].n
        if len({(p.bits, p.group) for p in panels[:3]}) > 1:
            raise ValueError("EncoderBlock: q, k and v differ in their format")
        biases = [b for _, b in matrices if b is not None]
        if any(t.dtype != float32 or not t.is_contiguous() for t in (*norms, *biases)):
            raise ValueError("EncoderBlock: norms and biases must be float32 and contiguous")
        fit = [(p.n, p.k) for p in panels] == [(d, d)] * 4 + [(inner, d), (d, inner)] and d % heads == 0
        vectors = [(t, d) for t in norms] + [(b, p.n) for p, b in matrices if b is not None]
        if not fit or any(t.shape != (n,) for t, n in vectors):
            raise ValueError(f"EncoderBlock: the tensors do not fit width {d} and {heads} heads")
        self.held = norms, matrices
        addresses = [t.data_ptr() for t in norms], [address(*m) for m in matrices]
        self.native = _C.EncoderBlockI8(*addresses, heads, eps, (d // heads) ** -0.5)

    def __reduce__(self) -> tuple:
        """A copy, or what is loaded again, would hold addresses of other tensors: None, and its owner makes another."""
        return type(None), ()

    def __call__(self, x: Tensor, patches: int) -> Tensor:
        """x float32 (V * P, D), contiguous, is overwritten by what the block gives, and returned."""
        if x.dtype != float32 or x.ndim != 2 or x.shape[1] != self.width or not x.is_contiguous():
            raise ValueError(f"EncoderBlock: x {x.dtype} {tuple(x.shape)} is not contiguous float32 (n, {self.width})")
        if patches < 1 or len(x) % patches:
            raise ValueError(f"EncoderBlock: {len(x)} rows are no views of {patches}")
        if registered(x):
            raise ValueError("EncoderBlock: there are no gradients, and nothing to trace")
        self.native.run(x.data_ptr(), len(x) // patches, patches)
        return x
