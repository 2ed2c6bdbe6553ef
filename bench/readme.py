"""python -m bench.readme: put the newest end-to-end results into the README's table, so that nobody types numbers."""

from __future__ import annotations

import json
from pathlib import Path

from bench.harness import RESULTS, table

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results: written by python -m bench.readme -->\n", "<!-- end of results -->"


def render() -> str:
    """The newest line of end_to_end.jsonl as text and a Markdown table."""
    run = json.loads((RESULTS / "end_to_end.jsonl").read_text().splitlines()[-1])
    limits = run["limits"]
    head = (
        f"{run['cpu']}, {run['threads']} cores, {', '.join(run['isa'])}; {run['dtype']}; torch {run['torch']}, "
        f"{run['peer']}; commit {run['commit']}, {run['date']}. Limits measured in the same run: "
        f"{limits['read_gbps']:.1f} GB/s of memory reads, {limits['gflops']:.0f} GFLOP/s of float32 products.\n\n"
    )
    return head + table(run["rows"], list(run["rows"][0])) + "\n"


def update(text: str) -> str:
    before, rest = text.split(BEGIN)
    return before + BEGIN + render() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(update(README.read_text()))
