"""Packed variable-length attention with grouped heads, for prompts, chunks of prompts and cached decoding.

A sequence of n queries and m keys costs 4 n m H K FLOPs (half when causal and n = m). Prompts are bound by FLOPs:
scores stay on chip, block by block, so bytes are q, k, v and the output. One query (decode) is bound by bytes: its
2 m G K cached elements are read once. Natively and in Triton each result is added in an order fixed by its own
sequence: alone, in a batch, and with any number of threads the bits are the same. Backward costs 2.5 times the forward
FLOPs (3.5 in Triton, which computes the scores once for dQ and once for dK and dV): the scores again, and four products
for the gradients; the forward pass keeps its output and a log-sum-exp per (row, head).

T query rows, R key rows, S sequences, H heads, G kv heads, K head dim.
"""

import importlib.util
import inspect
from functools import cache

import torch

from minilava_kernels.cached8 import BYTES, row_bytes, unpack
from minilava_kernels.decode_attention import decode_attention
from minilava_kernels.ops import register

try:
    from minilava import _C
except ImportError:
    _C = None

_DTYPES = (torch.float32, torch.bfloat16)  # of the native kernels
_I8_CACHE = (torch.float32, torch.int8, torch.int8)  # of q, k and v, which they take as well, without gradients
_KINDS = {} if _C is None else {torch.float32: _C.Kind.float32, torch.bfloat16: _C.Kind.bfloat16}
_MAX_DIM = {"triton": 128, "library": 256}


def attention_reference(q, k, v, cu_q, k_start, k_len, causal, scale=None):
    """One sequence after the other: scores in q's dtype, softmax in float32. A query that sees no key gives zeros."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if k.dtype == torch.int8:
        k, v = (unpack(x, q.shape[-1]).to(q.dtype) for x in (k, v))
    share = q.shape[1] // k.shape[1]
    ends, starts, lengths = cu_q.tolist(), k_start.tolist(), k_len.tolist()
    outputs = []
    for first, end, start, length in zip(ends, ends[1:], starts, lengths, strict=False):
        n = end - first
        qs = q[first:end].transpose(0, 1)
        ks = k[start : start + length].transpose(0, 1).repeat_interleave(share, 0)
        vs = v[start : start + length].transpose(0, 1).repeat_interleave(share, 0)
        scores = (qs @ ks.transpose(1, 2)) * scale
        if causal:
            hidden = torch.ones(n, length, dtype=torch.bool, device=q.device).triu(length - n + 1)
            scores = scores.masked_fill(hidden, float("-inf"))
        wide = scores.dtype if scores.dtype == torch.float64 else torch.float32
        weights = scores.softmax(-1, dtype=wide).to(q.dtype)
        if causal and n > length:
            weights = weights.masked_fill(hidden.all(1)[:, None], 0)
        outputs.append((weights @ vs).transpose(0, 1))
    return torch.cat(outputs) if outputs else torch.empty_like(q)


def attention(q, k, v, cu_q, k_start, k_len, causal, max_q=None, max_k=None, scale=None, impl=None, narrow=False):
    """q (T, H, K), k and v (R, G, K) -> (T, H, K). All of one dtype; or, on a CPU, k and v
    at 8 bits for queries in float32, int8 (R, G, bytes of a head) as cached8 packs them.

    Sequence s has queries cu_q[s]:cu_q[s + 1] and keys k_start[s]:k_start[s] + k_len[s], all int32. Causal is aligned
    to the end: query i of n sees the keys up to k_len - n + i. max_q and max_k spare the GPU a synchronisation.
    impl forces "reference", "native", "triton", "decode", "flash" or "torch". Gradients need keys packed as queries
    are (k_start = cu_q[:-1] and k_len alike), but for those of the reference, which takes any.
    narrow: without gradients, products may be those of bfloat16, where a CPU is faster so; sums and softmax stay in
    float32. Keys and values are packed first, which pays for prompts and not for steps.
    """
    learning = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    packed = (learning or impl or q.is_cuda) and _packed(q, k, cu_q, k_start)  # else nothing depends on it
    if impl is None:
        one_query = max_q == 1 and len(q) == len(k_len)
        impl = implementation(q.device, q.dtype, q.shape[-1], packed, learning, one_query)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if impl == "reference":
        return attention_reference(q, k, v, cu_q, k_start, k_len, causal, scale)
    if impl == "native":
        max_q = 0  # which only grids need
    elif max_q is None:
        max_q = int(cu_q.diff().max()) if len(k_len) else 0
    if impl == "decode":
        max_k = int(k_len.max()) if max_k is None else max_k
        return decode_attention(q, k, v, k_start, k_len, max_k, scale=scale, impl="triton")
    if impl in ("flash", "torch"):
        if not packed:
            raise ValueError(f"attention: {impl} needs keys packed as queries")
        return (_flash if impl == "flash" else _torch_varlen)(q, k, v, cu_q, max_q, causal, scale)
    if learning and not (packed and _lengths_agree(cu_q, k_len)):
        raise ValueError("attention: gradients need keys packed as queries: k_start = cu_q[:-1], k_len alike")
    arguments = (q, k, v, cu_q, k_start, k_len, causal, max_q, scale, impl)
    if learning or torch.compiler.is_compiling():
        return torch.ops.minilava.attention(*arguments)[0]
    return _run(*arguments, keep=False, narrow=narrow)[0]


def implementation(device, dtype, dim=64, packed=True, learning=False, one_query=False) -> str:
    """Which implementation attention() uses there.

    On a GPU, flash_attn comes first and PyTorch's varlen_attn next, both for half precision and for keys packed as
    queries: they take key offsets that run on without gaps, which those of a cache do not. Triton takes the rest.
    """
    kind = torch.device(device).type
    if learning and not packed:
        return "reference"
    if kind == "cpu" and _C is not None and dtype in _DTYPES:
        return "native"
    if kind != "cuda" or dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return "reference"
    if one_query and not learning and dim <= _MAX_DIM["triton"]:
        return "decode"
    if packed and dtype != torch.float32 and dim % 8 == 0 and dim <= _MAX_DIM["library"]:
        return "flash" if _installed("flash_attn") else "torch"
    return "triton" if dim <= _MAX_DIM["triton"] else "reference"


@cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _packed(q, k, cu_q, k_start) -> bool:
    """Keys are packed as queries are: a caller without a cache passes k_start = cu_q[:-1], the same memory."""
    if torch.compiler.is_compiling():  # nothing has an address there; with as many keys as queries none are cached
        return len(q) == len(k)
    same = k_start.data_ptr() == cu_q.data_ptr() or not len(k_start)  # an empty view has no address
    return same and len(q) == len(k)


def _lengths_agree(cu_q, k_len) -> bool:
    """Looked up where that waits for no device."""
    return cu_q.device.type != "cpu" or torch.compiler.is_compiling() or torch.equal(cu_q.diff(), k_len)


def _run(q, k, v, cu_q, k_start, k_len, causal, max_q, scale, impl, keep=True, narrow=False):
    """(out, log-sum-exp of the scores (T, H)), the second None natively if it is not to be kept."""
    (t, h, d), (r, g, _), s = q.shape, k.shape, k_len.shape[0]
    i8 = impl == "native" and (q.dtype, k.dtype, v.dtype) == _I8_CACHE
    dtypes = i8 or (q.dtype == k.dtype == v.dtype and (impl == "triton" or q.dtype in _DTYPES))
    if k.shape != v.shape or k.shape[2] != (row_bytes(d) if i8 else d) or h % g or not dtypes:
        raise ValueError(f"attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit")
    if (
        cu_q.shape != (s + 1,)
        or not k_start.shape == k_len.shape == (s,)
        or not cu_q.dtype == k_start.dtype == k_len.dtype == torch.int32
    ):
        raise ValueError("attention: cu_q (S + 1), k_start (S) and k_len (S) must be int32")
    cu_q, k_start, k_len = cu_q.contiguous(), k_start.contiguous(), k_len.contiguous()
    q, k, v = _rows(q), _rows(k), _rows(v)
    if i8 and (k.stride(0) % BYTES or v.stride(0) % BYTES):
        k, v = k.contiguous(), v.contiguous()
    if impl == "triton":
        from minilava_kernels.gpu.attention import attention as run

        if d > _MAX_DIM["triton"] or scale <= 0:
            raise ValueError(f"attention: the Triton kernel takes head dims up to 128 and scales above 0: {d}, {scale}")
        return run(q, k, v, cu_q, k_start, k_len, causal, max_q, scale)
    out = q.new_empty(t, h, d)
    lse = q.new_empty(t, h, dtype=torch.float32) if keep else None
    unit = BYTES if i8 else 1
    _C.attention(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), cu_q.data_ptr(), k_start.data_ptr(),
        k_len.data_ptr(), t, r, s, h, g, d, q.stride(0), k.stride(0) // unit, v.stride(0) // unit, causal, scale,
        _C.Kind.i8_cache if i8 else _KINDS[q.dtype], lse.data_ptr() if keep else 0, narrow,
    )  # fmt: skip
    return out, lse


def _run_backward(dout, q, k, v, out, lse, cu, causal, max_q, scale, impl):
    """Gradients of q, k and v: sequence s has the rows cu[s]:cu[s + 1] of all three."""
    t, h, d = q.shape
    q, k, v, cu, dout = _rows(q), _rows(k), _rows(v), cu.contiguous(), dout.contiguous()
    if impl == "triton":
        from minilava_kernels.gpu.attention import attention_backward as run

        return run(dout, q, k, v, out, lse, cu, causal, max_q, scale)
    dq, dk, dv = q.new_empty(t, h, d), k.new_empty(k.shape), v.new_empty(v.shape)
    _C.attention_backward(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), dout.data_ptr(), lse.data_ptr(), dq.data_ptr(),
        dk.data_ptr(), dv.data_ptr(), cu.data_ptr(), t, len(cu) - 1, h, k.shape[1], d, q.stride(0), k.stride(0),
        v.stride(0), causal, scale, q.dtype is torch.bfloat16,
    )  # fmt: skip
    return dq, dk, dv


def _rows(x):
    """x with contiguous rows; the stride between rows is free."""
    _, heads, inner = x.stride()
    return x if inner == 1 and heads == x.shape[2] else x.contiguous()


def _keep(ctx, inputs, output):
    q, k, v, cu, _, _, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, cu)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dout, _):
    return *torch.ops.minilava.attention_backward(dout, *ctx.saved_tensors, *ctx.options), *(None,) * 7


register(
    "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu, bool causal,"
    " SymInt max_q, float scale, str impl) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    lambda dout, q, k, v, *_: tuple(x.new_empty(x.shape) for x in (q, k, v)),
)
register(
    "attention(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor k_start, Tensor k_len, bool causal, SymInt max_q,"
    " float scale, str impl) -> (Tensor, Tensor)",
    _run,
    lambda q, *_: (
        q.new_empty(q.shape),
        q.new_empty(q.shape[:2], dtype=torch.float64 if q.dtype == torch.float64 else torch.float32),
    ),
    _backward,
    _keep,
)


def _flash(q, k, v, cu, longest, causal, scale):
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, softmax_scale=scale, causal=causal)


def _torch_varlen(q, k, v, cu, longest, causal, scale):
    from torch.nn.attention.varlen import varlen_attn

    options = {"enable_gqa": q.shape[1] != k.shape[1]} if "enable_gqa" in _parameters(varlen_attn) else {}
    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(q, k, v, cu, cu, longest, longest, scale=scale, window_size=window, **options)


@cache
def _parameters(function) -> set[str]:
    """Their names; those of varlen_attn differ from release to release."""
    return set(inspect.signature(function).parameters)
