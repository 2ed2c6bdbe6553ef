"""Tensors on disk: what a key and a fingerprint depend on, and writers and readers that get in each other's way."""

import threading

import pytest
import torch

from minilava import store
from minilava.errors import UserError
from minilava.store import Store, digest, fingerprint


def test_a_digest_depends_on_all_there_is():
    x = torch.arange(12.0)
    others = [x.view(3, 4), x.view(4, 3), x.view(torch.int32), -x, x[:11], x.half(), x.bfloat16(), torch.empty(0)]
    assert len({digest(t) for t in (x, *others)}) == 9
    assert digest(x.view(3, 4).t()) == digest(x.view(3, 4).t().contiguous())


def test_a_fingerprint_depends_on_every_module_and_the_dtype():
    a, b = torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)
    names = [fingerprint([a, b], torch.float32), fingerprint([a], torch.float32), fingerprint([a, b], torch.bfloat16)]
    with torch.no_grad():
        b.bias[3] = 1e-9
    assert len({*names, fingerprint([a, b], torch.float32)}) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_written_is_read(tmp_path, dtype):
    kept, view = Store(tmp_path / "new"), torch.randn(5, 6).to(dtype)
    assert kept.read("ab12") is None
    kept.write("ab12", view.t())
    found = kept.read("ab12")
    assert found.dtype == dtype and torch.equal(found, view.t())


def test_two_threads_write_the_same_key(tmp_path, monkeypatch):
    """Both are in the middle of it before either is done."""
    kept, view, both, names = Store(tmp_path), torch.randn(5, 6), threading.Barrier(2, timeout=60), []
    save, done = store.save_file, []

    def slow(tensors, path):
        save(tensors, path)
        names.append(path)
        both.wait()

    monkeypatch.setattr(store, "save_file", slow)
    threads = [threading.Thread(target=lambda: done.append(kept.write("ab12", view))) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert done == [None, None] and names[0] != names[1]
    assert torch.equal(kept.read("ab12"), view) and len(list(tmp_path.rglob("*.*"))) == 1


def test_what_is_no_file_is_no_view_and_no_crash(tmp_path):
    kept = Store(tmp_path)
    kept.path("ab12").mkdir(parents=True)
    assert kept.read("ab12") is None
    with pytest.raises(UserError, match="cannot write"):
        kept.write("ab12", torch.zeros(2))
    assert not list(tmp_path.rglob("*.tmp"))
