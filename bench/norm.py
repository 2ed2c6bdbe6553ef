"""RMS and layer norm, with and without the residual add. python -m bench.norm"""

import torch
import torch.nn.functional as F

from bench import micro
from minilava_kernels.norm import layer_norm, rms_norm, rms_norm_reference

EPS = 1e-6


def cases(device: str, dtype: torch.dtype):
    for rows, dim in ((729, 1152), (16 * 729, 1152), (64 * 729, 1152)) if device == "cuda" else ((729, 1152),):
        x, r, w, b = (torch.randn(*s, device=device).to(dtype) for s in ((rows, dim), (rows, dim), (dim,), (dim,)))
        name = f"layer norm {rows} x {dim}"
        yield micro.Case(name, lambda x, w, b: layer_norm(x, w, b, EPS), _layer, (x, w, b), 2 * x.nbytes)
        yield micro.Case(name + " + residual", lambda x, r, w, b: layer_norm(x, w, b, EPS, residual=r),
                         lambda x, r, w, b: (_layer(x + r, w, b), x + r), (x, r, w, b), 4 * x.nbytes)  # fmt: skip
    for rows, dim in (
        ((1, 1024), (32, 1024), (8192, 1024), (8192, 3584)) if device == "cuda" else ((1, 1024), (512, 1024))
    ):
        x, r, w = (torch.randn(*s, device=device).to(dtype) for s in ((rows, dim), (rows, dim), (dim,)))
        name = f"RMS norm {rows} x {dim}"
        yield micro.Case(name, lambda x, w: rms_norm(x, w, EPS), lambda x, w: rms_norm_reference(x, w, EPS), (x, w),
                         2 * x.nbytes, peer=lambda x, w: F.rms_norm(x, w.shape, w, EPS))  # fmt: skip
        yield micro.Case(name + " + residual", lambda x, r, w: rms_norm(x, w, EPS, residual=r), _add, (x, r, w),
                         4 * x.nbytes)  # fmt: skip


def _add(x, r, w):
    return rms_norm_reference(x + r, w, EPS), x + r


def _layer(x, w, b):
    wide = x if x.dtype == torch.float64 else x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    return (centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + EPS) * w + b).to(x.dtype)


if __name__ == "__main__":
    micro.main("norm", cases)
