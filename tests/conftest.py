"""Shared fixtures: no network, fixed seeds, small random checkpoints."""

from __future__ import annotations

import os
import socket

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels then run on CPU tensors


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Any connection to elsewhere is a bug: nothing in the package or its tests may need one."""
    real = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to connect to {address}")
        return real(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = real


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Directory of a tiny random checkpoint of the original dialect, with anyres and newline."""
    from minilava.checkpoint import write_random

    path = tmp_path_factory.mktemp("tiny") / "model"
    write_random(path, shape="tiny", dialect="original", seed=1, dtype="float32", tokenizer="byte")
    return path


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory):
    """Directory of a tiny random checkpoint of the Hugging Face dialect."""
    from minilava.checkpoint import write_random

    path = tmp_path_factory.mktemp("tiny_hf") / "model"
    write_random(path, shape="tiny", dialect="hf", seed=2, dtype="float32", tokenizer="byte")
    return path


@pytest.fixture
def calls(monkeypatch):
    """The number of views of every call of the tower."""
    from minilava.model.siglip import SigLIP

    made, real = [], SigLIP.forward

    def counted(self, patches):
        made.append(len(patches))
        return real(self, patches)

    monkeypatch.setattr(SigLIP, "forward", counted)
    return made
