"""Tensors on disk under a key made from what they were computed from, so that they are computed once.

    DIR/<fingerprint of the weights>/ab/abcdef....safetensors    one tensor, with a hash of itself

Files appear whole or not at all: any number of processes and threads may share a folder.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minilava.errors import UserError

SIZE = 16  # bytes of a hash


def digest(tensor: Tensor) -> str:
    """Hash of a tensor's dtype, shape and bytes."""
    whole = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)} ".encode(), digest_size=SIZE)
    whole.update(memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    return whole.hexdigest()


def fingerprint(modules: Sequence[nn.Module], dtype: torch.dtype) -> str:
    """Hash of everything that modules hold and of the dtype that they compute in. A second per gigabyte and core."""
    tensors = [item for m in modules for item in sorted(m.state_dict().items())]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashing lets other threads run
        digests = pool.map(digest, [tensor for _, tensor in tensors])
        lines = [str(dtype), *(f"{name} {d}" for (name, _), d in zip(tensors, digests, strict=True))]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=SIZE).hexdigest()


class Store:
    """The tensors of one folder, which is made at the first write."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Tensor | None:
        """None where there is no such tensor. A damaged file counts as none and is removed."""
        try:
            held = load_file(self.path(key))
            if digest(held["view"]) == bytes(held["digest"].tolist()).hex():
                return held["view"]
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            pass
        with suppress(OSError):
            self.path(key).unlink()
        return None

    def write(self, key: str, view: Tensor) -> None:
        """Raises UserError where the folder cannot be written."""
        path = self.path(key)
        temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            check = torch.tensor(list(bytes.fromhex(digest(view))), dtype=torch.uint8)
            save_file({"view": view.cpu().contiguous(), "digest": check}, temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as e:
            if path.parent.is_dir():
                temporary.unlink(missing_ok=True)
            reason = e.strerror if isinstance(e, OSError) and e.strerror else e
            raise UserError(f"cannot write features to {self.folder}: {reason}") from None
