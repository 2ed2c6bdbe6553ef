"""The paper's Tables 1 to 4 as printed, to stand beside a run's own row (paper.json)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """rows: model -> one number or None per column. averages: column -> the columns whose mean it is said to be."""

    title: str
    columns: list[str]
    averages: dict[str, list[str]]
    rows: dict[str, list[float | None]]

    def row(self, model: str) -> dict[str, float | None]:
        return dict(zip(self.columns, self.rows[model], strict=True))


@cache
def tables() -> dict[str, Table]:
    """ "Table 1" to "Table 4"."""
    read = json.loads((Path(__file__).parent / "paper.json").read_text("utf-8"))
    return {name: Table(**table) for name, table in read.items() if name != "note"}
