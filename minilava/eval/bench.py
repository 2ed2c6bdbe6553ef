"""LLaVA-Interleave Bench, multi-image and 3D: the published JSON and image folders (spec 7.1, 7.5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from minilava.data.records import open_records
from minilava.errors import UserError
from minilava.eval.item import Column, Item, Layout, Suite, find

MULTI_IMAGE = ("multi_image_in_domain.json", "multi_image_out_domain.json", "MMMU_mv.json")
MULTI_VIEW = ("multi_view_in_domain.json",)
MAX_NEW_TOKENS = 1024

IN_DOMAIN = (
    Column("SD", ("Spot-the-Diff", "Birds-to-Words", "CLEVR-Change")),
    Column("IE", ("IEdit", "HQ-Edit", "MagicBrush")),
    Column("VST", ("AESOP", "FlintstonesSV", "PororoSV", "VIST")),
    Column("TRVQA", ("WebQA", "TQA", "OCR-VQA", "DocVQA")),
    Column("MIVQA", ("MIT-States_StateCoherence", "MIT-States_PropertyCoherence", "VISION", "RecipeQA_ImageCoherence")),
    Column("Puzzle", ("RAVEN",)),
    Column("QB", ("QBench",)),
    Column("NLVR2", ("NLVR2_Mantis",)),
)
OUT_DOMAIN = (
    Column("Math", ("MathVerse",)),
    Column("Sci", ("SciVerse",)),
    Column("Mantis", ("Mantis",)),
    Column("BLINK", ("BLINK",)),
    Column("MMMU-mv", ("MMMU",)),
)
CLOZE = Column("Visual Cloze", ("COMICS_Dialogue", "RecipeQA_VisualCloze"))  # in the script, not in the paper
VIEWS = (
    Column("3D-assisted Dialogue", ("ScanNet_chat",)),
    Column("Task Decomposition", ("ScanNet_task",)),
    Column("ScanQA", ("ScanQA",)),
    Column("ALFRED", ("ALFRED",)),
    Column("nuScenes VQA", ("nuscenes",)),
)


def _names(columns: tuple[Column, ...]) -> tuple[str, ...]:
    return tuple(c.name for c in columns)


def _read(files: tuple[str, ...], data: Path | None, limit: int | None) -> Iterator[Item]:
    find(data, *files)
    folder = data / "eval_images" if (data / "eval_images").is_dir() else data
    types: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for file in (f for f in files if (data / f).exists()):
        records = open_records(data / file, folder)
        for i in range(len(records)):
            record = records.read(i)
            metadata = record.get("metadata") or {}
            task = str(metadata.get("dataset") or Path(file).stem)
            task = "MMMU" if task.startswith("MMMU") else task  # its name in the published file is not known
            # The authors' script scores a whole data set by the type of its first line; lmms-eval goes line by line.
            own = str(metadata.get("question_type"))
            metric = types.setdefault(task, own)
            taken[task] += 1
            if limit is not None and taken[task] > limit:
                continue
            key = record.get("sample_id", record.get("id", i))
            name = f"{task}/{key}~{taken[task]}"
            yield Item(name, task, metric, _turns(record, file, i), _Media(records, i), own_metric=own)


class _Media:
    """The pictures of record i, looked up when they are wanted."""

    def __init__(self, records, i: int):
        self.records, self.i = records, i

    def __call__(self) -> list[tuple[str, str]]:
        return [("image", path) for path in self.records[self.i].get("image", [])]


def _turns(record: dict, file: str, i: int) -> list[tuple[str, str]]:
    talk = record.get("conversations")
    try:
        texts = [(m["from"], m["value"]) for m in talk]
    except (TypeError, KeyError):
        raise UserError(f"{file}: record {i} has no conversation of 'from' and 'value'") from None
    asked, answers = texts[::2], texts[1::2]
    roles = [r for r, _ in texts]
    if not texts or roles != ["human", "gpt"] * (len(texts) // 2):
        raise UserError(f"{file}: record {i} must alternate between human and gpt, from human to gpt")
    return [(q, a) for (_, q), (_, a) in zip(asked, answers, strict=True)]


INTERLEAVE = Suite(
    lambda data, limit: _read(MULTI_IMAGE, data, limit),
    Layout(
        (*IN_DOMAIN, *OUT_DOMAIN, CLOZE),
        {"In-domain Avg": _names(IN_DOMAIN), "Out-domain Avg": _names(OUT_DOMAIN)},
        "Table 1",
    ),
    MAX_NEW_TOKENS,
    scorers=True,
)
THREE_D = Suite(
    lambda data, limit: _read(MULTI_VIEW, data, limit),
    Layout(VIEWS, {"Avg": _names(VIEWS)}, "Table 3"),
    MAX_NEW_TOKENS,
    scorers=True,
)
