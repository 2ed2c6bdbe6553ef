"""Packed rows of the decoder's input: token embeddings with image features written between them.

Every row is read from somewhere and written once: 2 T D values (a pooled row reads four), no arithmetic to speak of,
so it is bound by memory. PyTorch makes the same of an embedding, a mixture, a concatenation, a gather and a scatter.

T packed rows, N of them spliced, F feature rows, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minilava_kernels.ops import register, registered
from minilava_kernels.pool import mix_rows_reference


def splice_reference(table, ids, rows, source, features, mix_taps, mix_weights, max_taps, newline):
    x = F.embedding(ids, table).to(features.dtype)
    bank = [features]
    if mix_taps is not None:
        bank.append(mix_rows_reference(features, mix_taps, mix_weights))
    if max_taps is not None:
        bank.append(mix_rows_reference(features, max_taps, None))
    if newline is not None:
        bank.append(newline[None].to(x.dtype))
    found = (torch.cat(bank) if len(bank) > 1 else bank[0])[source]
    return x.index_copy(0, rows, found)


def splice(
    table: Tensor,
    ids: Tensor,
    rows: Tensor,
    source: Tensor,
    features: Tensor,
    mix_taps: Tensor | None = None,
    mix_weights: Tensor | None = None,
    max_taps: Tensor | None = None,
    newline: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Embeddings of ids int64 (T,) from table (V, D), with bank[source] written to ``rows``: (T, D) in features' dtype.

    rows and source: int64 (N,). The bank is [features (F, D), weighted mixtures, maxima, newline (D,)]: mix_taps
    int64 (Mw, 4) with mix_weights float32 (Mw, 4), max_taps int64 (Mm, 4). table and newline may be wider.
    impl forces "reference" or "triton".
    """
    impl = impl or implementation(features)
    arguments = table, ids, rows, source, features, mix_taps, mix_weights, max_taps, newline
    if impl == "reference":
        return splice_reference(*arguments)
    run = torch.ops.minilava.splice if registered(table, features, newline) else _run
    return run(*arguments, impl)


def implementation(features: Tensor) -> str:
    """Which implementation splice() uses for these features."""
    return "triton" if features.device.type == "cuda" and features.dtype != torch.float64 else "reference"


def _sources(ids, rows, source):
    """For every packed row its row of the bank, or -1 for text."""
    return torch.full_like(ids, -1).index_copy_(0, rows, source)


def _bank(features, mix_taps, mix_weights, max_taps):
    """The parts as the kernels take them: what is absent has no rows."""
    none = torch.empty(0, 4, dtype=torch.int64, device=features.device)
    weights = features.new_empty(0, 4, dtype=torch.float32) if mix_weights is None else mix_weights.float()
    taps = [none if t is None else t.contiguous() for t in (mix_taps, max_taps)]
    return features.contiguous(), taps[0], weights.contiguous(), taps[1]


def _run(table, ids, rows, source, features, mix_taps, mix_weights, max_taps, newline, impl):
    from minilava_kernels.gpu.splice import splice as run

    bank = _bank(features, mix_taps, mix_weights, max_taps)
    newline = table.new_empty(0) if newline is None else newline.contiguous()
    y = features.new_empty(len(ids), table.shape[1])
    return run(table.contiguous(), ids.contiguous(), _sources(ids, rows, source), *bank, newline, y)


def _run_backward(table, ids, rows, source, features, mix_taps, mix_weights, max_taps, newline, grad, impl):
    """Gradients of table, features and newline (empty without one)."""
    from minilava_kernels.gpu.splice import splice_backward

    grad, source = grad.contiguous(), _sources(ids, rows, source)
    dfeatures = splice_backward(source, *_bank(features, mix_taps, mix_weights, max_taps), grad)
    # Spliced rows count as one more id past the vocabulary, whose gradient is dropped: nothing waits for the device.
    count = len(table)
    ids = ids.masked_fill(source >= 0, count)
    wide = grad.to(table.dtype)
    dtable = torch.ops.aten.embedding_dense_backward(wide, ids, count + 1, count, False)[:count].contiguous()
    if newline is None:
        return dtable, dfeatures, grad.new_empty(0)
    first = sum(len(x) for x in (features, mix_taps, max_taps) if x is not None)
    is_newline = (source >= first).to(grad.dtype)
    return dtable, dfeatures, (is_newline @ grad).to(newline.dtype)


def _keep(ctx, inputs, output):
    *tensors, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    dtable, dfeatures, dnewline = torch.ops.minilava.splice_backward(*ctx.saved_tensors, grad, ctx.impl)
    newline = ctx.saved_tensors[-1]
    return dtable, None, None, None, dfeatures, None, None, None, None if newline is None else dnewline, None


_ARGUMENTS = (
    "Tensor table, Tensor ids, Tensor rows, Tensor source, Tensor features, Tensor? mix_taps, Tensor? mix_weights, "
    "Tensor? max_taps, Tensor? newline"
)
register(
    f"splice_backward({_ARGUMENTS}, Tensor grad, str impl) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    lambda table, ids, rows, source, features, mix_taps, mix_weights, max_taps, newline, grad, impl: (
        table.new_empty(table.shape),
        features.new_empty(features.shape),
        grad.new_empty(0) if newline is None else newline.new_empty(newline.shape),
    ),
)
register(
    f"splice({_ARGUMENTS}, str impl) -> Tensor",
    _run,
    lambda table, ids, rows, source, features, *rest: features.new_empty(ids.shape[0], table.shape[1]),
    _backward,
    _keep,
)
