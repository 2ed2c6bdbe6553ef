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
    names = {"transformers": "transformers", "llama_cpp": "llama-cpp-python", "openvino": "OpenVINO"}
    versions = ", ".join(f"{name} {run[key]}" for key, name in names.items() if run.get(key))
    return (
        f"{versions}. Limits measured in the same run: {limits['read_gbps']:.1f} GB/s of "
        f"memory reads, {limits['integer_gops']:.0f} GOP/s of PyTorch's integer product."
    )


def emerging(run: dict) -> str:
    return f"{run['per_task']} questions per task."


def evaluate(run: dict) -> str:
    return f"{run['questions']} questions, medians of {run['repeats']}."


def quality(run: dict) -> str:
    return f"{run['tokens']} tokens; llama-cpp-python {run['llama_cpp']}."


def quality_world(run: dict) -> str:
    return f"{run['per_task']} questions per task of the test split."


TABLES = {f.__name__: f for f in (emerging, end_to_end, evaluate, peers, quality, quality_world, training, world)}


def render(name: str) -> str:
    """The newest line of results/NAME.jsonl as text and a Markdown table."""
    run = json.loads((RESULTS / f"{name}.jsonl").read_text().splitlines()[-1])
    where = f"{run['cpu']}, {run['threads']} cores, {', '.join(run['isa'])}; torch {run['torch']}; "
    head = f"{where}commit {run['commit']}, {run['date']}; {TABLES[name](run)}\n\n"
    return head + "\n\n".join(table(run["rows"], columns) for columns in _columns(name, run["rows"])) + "\n"


def _columns(name: str, rows: list[dict]) -> list[list[str]]:
    """Of each of the tables that a result becomes: the peers' rates, and what they mean, side by side are too wide."""
    columns = list(rows[0])
    if name != "peers":
        return [columns]
    at = columns.index("int8 ratio")
    return [columns[:at], columns[:1] + columns[at:]]


def update(text: str) -> str:
    """The README with every table written anew."""
    for name in TABLES:
        before, rest = text.split(BEGIN.format(name))
        text = before + BEGIN.format(name) + render(name) + END.format(name) + rest.split(END.format(name))[1]
    return text


if __name__ == "__main__":
    README.write_text(update(README.read_text()))
