"""python -m bench.readme: put the newest results into the README's tables, so that nobody types numbers."""

from __future__ import annotations

import json
from pathlib import Path

from bench.harness import RESULTS, table

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- {}: written by python -m bench.readme -->\n", "<!-- end of {} -->"


def end_to_end(run: dict) -> str:
    limits = run["limits"]
    return (
        f"{run['dtype']}; {run['peer']}. Limits measured in the same run: "
        f"{limits['read_gbps']:.1f} GB/s of memory reads, {limits['gflops']:.0f} GFLOP/s of float32 products."
    )


def training(run: dict) -> str:
    return f"float32; the loss curves of {run['steps']} steps differ by at most {run['loss_apart']:.1e} (relative)."


def world(run: dict) -> str:
    return f"Split {run['split']}, {run['per_task']} questions per task, seed {run['seed']}."


def peers(run: dict) -> str:
    limits = run["limits"]
    return (
        f"transformers {run['transformers']}. Limits measured in the same run: {limits['read_gbps']:.1f} GB/s of "
        f"memory reads, {limits['integer_gops']:.0f} GOP/s of PyTorch's integer product."
    )


TABLES = {f.__name__: f for f in (end_to_end, peers, training, world)}


def render(name: str) -> str:
    """The newest line of results/NAME.jsonl as text and a Markdown table."""
    run = json.loads((RESULTS / f"{name}.jsonl").read_text().splitlines()[-1])
    where = f"{run['cpu']}, {run['threads']} cores, {', '.join(run['isa'])}; torch {run['torch']}; "
    head = f"{where}commit {run['commit']}, {run['date']}; {TABLES[name](run)}\n\n"
    return head + table(run["rows"], list(run["rows"][0])) + "\n"


def update(text: str) -> str:
    """The README with every table written anew."""
    for name in TABLES:
        before, rest = text.split(BEGIN.format(name))
        text = before + BEGIN.format(name) + render(name) + END.format(name) + rest.split(END.format(name))[1]
    return text


if __name__ == "__main__":
    README.write_text(update(README.read_text()))
