"""Checkpoints of a run: whole or absent, verified by hash, and enough to go on to the same bits.

    OUT/step-00000500/   shards written by torch.distributed.checkpoint (they re-shard to another number of processes),
                         run.json (step, stream positions, random states), manifest.json (size and hash of every file)

A checkpoint is written as step-....tmp, synced, and renamed: a kill at any moment leaves the previous one valid.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from minilava.errors import UserError
from minilava.train.ranks import Ranks

MANIFEST = "manifest.json"
FAILURES = (Exception, CheckpointException)  # torch's wrapper around what a process raised is no Exception


def save(
    out: Path,
    step: int,
    objective: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    run: dict,
    keep: int,
    ranks: Ranks,
) -> None:
    """Write the checkpoint of ``step`` and remove all but the last ``keep``. Raises UserError where the disk is full
    or not writable; the previous checkpoints stay as they are."""
    final = out / f"step-{step:08d}"
    temporary = final.with_suffix(".tmp")
    model, optim = get_state_dict(objective, optimizers)
    try:
        if ranks.first:
            for unfinished in out.glob("step-*.tmp"):
                shutil.rmtree(unfinished, ignore_errors=True)
            temporary.mkdir(parents=True)
        ranks.barrier()
        writer = dcp.FileSystemWriter(temporary, sync_files=True, single_file_per_rank=True)
        with warnings.catch_warnings():  # torch tells of a run with one process at every save
            warnings.simplefilter("ignore")
            dcp.save({"model": model, "optim": optim}, storage_writer=writer, no_dist=ranks.world == 1)
        if ranks.first:
            (temporary / "run.json").write_text(json.dumps(run) + "\n", "utf-8")
            _seal(temporary)
            os.replace(temporary, final)
            sync(out)
    except FAILURES as e:
        shutil.rmtree(temporary, ignore_errors=True)
        last = latest(out)
        kept = f"the last good one is {last.name}" if last else "there is no earlier one"
        raise UserError(f"cannot write the checkpoint of step {step} to {out}: {_reason(e)}; {kept}") from None
    ranks.barrier()
    if ranks.first:
        for old in finished(out)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def read(path: Path) -> dict:
    """A checkpoint's run.json, after every file has been checked. Raises UserError if one is damaged."""
    verify(path)
    return json.loads((path / "run.json").read_text("utf-8"))


def restore(path: Path, objective: nn.Module, optimizers: list[torch.optim.Optimizer], ranks: Ranks) -> None:
    """Load a checkpoint into the objective and the optimizer. Raises UserError where it holds another model."""
    model, optim = get_state_dict(objective, optimizers)
    state = {"model": model, "optim": optim}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(state, storage_reader=dcp.FileSystemReader(path), no_dist=ranks.world == 1)
    except FAILURES as e:
        raise UserError(f"{path} does not fit the model of init: {_reason(e)}") from None
    set_state_dict(objective, optimizers, model_state_dict=state["model"], optim_state_dict=state["optim"])


def finished(out: Path) -> list[Path]:
    """Complete checkpoints in the order of their steps."""
    return sorted(out.glob("step-????????"))


def latest(out: Path) -> Path | None:
    return (finished(out) or [None])[-1]


def verify(path: Path) -> None:
    """UserError if a file of the checkpoint is missing or not what was written."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text("utf-8"))
        for name, entry in manifest.items():
            file = path / name
            if file.stat().st_size != entry["bytes"] or _digest(file) != entry["blake2b"]:
                raise ValueError("not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged: remove {path} to go on from the checkpoint before it") from None


def _reason(e: BaseException) -> str:
    """What went wrong, in one line. torch wraps what a process raised, and complains itself on top of a full disk."""
    causes = [c for c, _ in getattr(e, "failures", {}).values()]
    e = seen = causes[0] if causes else e
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__context__
    return (seen and seen.strerror) or " ".join(str(e).split())[:200] or type(e).__name__


def _seal(folder: Path) -> None:
    """Write the manifest, and make sure that it and all it names are on the disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "blake2b": _digest(p)} for p in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    for path in [*files, folder / MANIFEST, folder]:
        sync(path)


def _digest(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
