"""What is trained, what each model is asked and what is compared, for the paper's Tables 5, 6, 7, 13 and 14."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minilava.data.mixture import read_yaml

HERE = Path(__file__).parent
TINY = HERE.parent / "tiny"
NEW = "new"  # untrained weights
SEEDS = 3
QUESTIONS = 400  # of every task


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A model to train. recipe: the trainer's file. start: the run that it goes on from, or NEW.

    only: the recipe's sources that are kept; () keeps all. change: source -> settings that replace its own.
    steps: None takes the recipe's, times the share of its samples that is kept. seeds: how many there are at most.
    shared: one run serves all seeds. step_s: seconds of a step on two cores, for the estimate.
    """

    name: str
    recipe: Path
    start: str
    only: tuple[str, ...] = ()
    change: dict[str, dict] = field(default_factory=dict)
    steps: int | None = None
    seeds: int = SEEDS
    shared: bool = False
    step_s: float = 0.6

    def folder(self, out: Path, seed: int) -> Path:
        return out / (self.name if self.shared else f"{self.name}-{seed}")

    def settings(self, out: Path, seed: int, scale: float = 1.0) -> dict:
        """The recipe as this run follows it, for train.config.parse. scale: of the number of steps."""
        raw = read_yaml(self.recipe)
        every = raw["data"]["sources"]
        sources = [s | self.change.get(s["name"], {}) for s in every if not self.only or s["name"] in self.only]
        kept, total = (sum(s["samples"] for s in some) for some in (sources, every))
        steps = max(1, round((self.steps or raw["steps"] * kept / total) * scale))
        if raw.get("form") == "pairs":  # the frozen reference is computed for all of them, however few the steps
            sources = [s | {"samples": max(1, round(s["samples"] * scale))} for s in sources]
        start = RUNS[self.start].folder(out, seed) / "model" if self.start in RUNS else out / NEW
        own = {"init": str(start), "out": str(self.folder(out, seed)), "steps": steps, "seed": seed, "keep": 1}
        return raw | own | {"data": {"sources": sources}}


M4, FRAMES, DPO = (HERE / f"{name}.yaml" for name in ("interleave", "frames", "dpo"))
POOLED = {"clip_frames": 40, "frames": 40, "pool": "average"}
RUNS = {
    run.name: run
    for run in (
        # The base, as in recipes/tiny but shorter. What the paper takes ready-made (tower, decoder) all seeds share.
        Run("pretrain", TINY / "pretrain.yaml", NEW, steps=600, shared=True, step_s=1.0),
        Run("projector", TINY / "projector.yaml", "pretrain", shared=True, step_s=1.0),
        Run("single", TINY / "single.yaml", "projector", steps=500),
        Run("m4", M4, "single"),
        Run("from-stage1", M4, "projector"),
        Run("interleaved", M4, "single", change={"multi-image": {"layout": "interleaved"}}),
        Run("front", M4, "single", change={"multi-image": {"layout": "front"}}),
        Run("video", M4, "single", only=("video",)),
        Run("video-single", M4, "single", only=("video", "single-image")),
        Run("video-multi", M4, "single", only=("video", "multi-image")),
        Run("video-both", M4, "single", only=("video", "single-image", "multi-image")),
        Run("frames-10", FRAMES, "single", seeds=2, step_s=0.65),
        Run("frames-40", FRAMES, "single", change={"video": POOLED}, seeds=2, step_s=1.25),
        Run("dpo", DPO, "m4", step_s=1.4),
    )
}


# --- exams ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exam:
    """How the test split's questions are asked. clip_frames: how many frames a clip is drawn in; None: its own."""

    layout: str = "interleaved"
    frames: int = 6
    pool: str = "average"
    clip_frames: int | None = None


EXAMS = {
    "interleaved": Exam(),
    "front": Exam("front"),
    "10-frames": Exam(frames=10, pool="none", clip_frames=10),
    "16-frames": Exam(frames=16, pool="none", clip_frames=16),
    "40-frames-pooled": Exam(frames=40, clip_frames=40),
    "64-frames-pooled": Exam(frames=64, clip_frames=64),
}
DESCRIPTION, PREFERENCES = "video_description", "preferences"  # beside the world's own tasks: see exam.py


def likelihood(task: str) -> str:
    """What the lines of exam.likely call a task."""
    return f"{task}, likelihood"


MULTI = ("text_rich", "multi_image_vqa", "low_level")
VIDEO = ("video_qa", DESCRIPTION)


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    labels: tuple[str, ...]
    run: str
    exam: str = "interleaved"


@dataclass(frozen=True)
class Claim:
    """The row ``better`` scores more than the row ``worse`` in a column. within: instead, it scores the same up to so
    many points."""

    better: int
    worse: int
    column: str
    within: float | None = None


@dataclass(frozen=True)
class Table:
    """number: the paper's. says: what the paper concludes. columns: name -> tasks whose mean it is.
    note: how this table differs from the paper's."""

    number: int
    title: str
    says: str
    heads: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    note: str

    @property
    def name(self) -> str:
        return f"table{self.number}"

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(task for tasks in self.columns.values() for task in tasks))

    def seeds(self, seeds: int) -> range:
        """Those that all its rows have, of so many."""
        return range(1, 1 + min(seeds, *(RUNS[row.run].seeds for row in self.rows)))


ONE = {task: (task,) for task in MULTI}
FILM = {task: (task,) for task in VIDEO} | {"video": VIDEO}
ALL = {
    table.name: table
    for table in (
        Table(
            5,
            "continue from stage 1 or from single-image",
            "interleaved training from a single-image model (stage 2) beats the same from stage 1 (spec 6.1).",
            ("start",),
            ONE | {"multi-image": MULTI, "video_qa": ("video_qa",), "embodied_vqa": ("embodied_vqa",),
                   "single_image": ("single_image",),
                   "all": (*MULTI, "video_qa", "embodied_vqa", "single_image")},
            (Row(("stage 1 (projector)",), "from-stage1"), Row(("stage 2 (single-image)",), "m4")),
            tuple(Claim(1, 0, column) for column in ("all", "multi-image", *MULTI)),
            "As in the paper the second row has had the steps of the single-image stage on top of the first row's: the "
            "comparison is of recipes, not of equal compute. The comparison of all columns together was added when two "
            "seeds had been seen; the four others were there before. The last four columns are additions.",
        ),
        Table(
            6,
            "interleaved, in-the-front or mixed training, times the layout of the test",
            "training on both layouts helps in either of them (spec 10.26).",
            ("training", "test"),
            ONE | {"multi-image": MULTI},
            (
                Row(("interleaved", "interleaved"), "interleaved"),
                Row(("interleaved", "in the front"), "interleaved", "front"),
                Row(("in the front", "interleaved"), "front"),
                Row(("in the front", "in the front"), "front", "front"),
                Row(("mixed", "interleaved"), "m4"),
                Row(("mixed", "in the front"), "m4", "front"),
            ),
            tuple(Claim(better, worse, "multi-image") for better, worse in ((4, 0), (4, 2), (5, 1), (5, 3))),
            "The layout of the multi-image source alone is changed; mixed puts half of its conversations in the front. "
            "All rows have the same number of steps.",
        ),
        Table(
            7,
            "videos alone, with single images, with several images, with both",
            "videos gain from single-image and from multi-image data, and from both.",
            ("training data",),
            FILM,
            (
                Row(("video",), "video"),
                Row(("video + single-image",), "video-single"),
                Row(("video + multi-image",), "video-multi"),
                Row(("video + both",), "video-both"),
                Row(("all four scenarios",), "m4"),
            ),
            tuple(Claim(row, 0, "video") for row in (1, 2, 3)),
            "Data are added, as in the paper: every row reads the same number of videos, and more steps come with more "
            "data. All rows start from the single-image model. The last row is not in the paper's table.",
        ),
        Table(
            13,
            "videos pooled to a quarter of their tokens, or not",
            "at equal numbers of tokens fewer frames unpooled beat more frames pooled, and 16 frames beat the 10 of "
            "training (spec 4.1).",
            ("training", "test", "length"),
            FILM,
            (
                Row(("10 frames", "10 frames", "360 tokens"), "frames-10", "10-frames"),
                Row(("10 frames", "16 frames", "576 tokens"), "frames-10", "16-frames"),
                Row(("40 pooled", "40 pooled", "360 tokens"), "frames-40", "40-frames-pooled"),
                Row(("40 pooled", "64 pooled", "576 tokens"), "frames-40", "64-frames-pooled"),
            ),
            (Claim(0, 2, "video"), Claim(1, 3, "video"), Claim(1, 0, "video")),
            "The world's clips have six moments, all of which ten frames show: more frames show the same movements "
            "more finely, where more frames of a long real video show more of it. Their things stand on a 3 x 3 grid, "
            "and a pooled frame is 3 x 3 tokens, so pooling loses less here. A frame has 36 tokens, the paper's 729. "
            "Two seeds.",
        ),
        Table(
            14,
            "before and after DPO on videos",
            "DPO makes video descriptions better, and changes the other tasks little (its Tables 2 and 14; neither the "
            "spec nor paper.json quotes a sentence on it).",
            ("model",),
            {PREFERENCES: (PREFERENCES,), **{task: (task,) for task in reversed(VIDEO)}, "multi-image": MULTI,
             "multi-view": ("embodied_vqa",), "single-image": ("single_image",)},
            (Row(("before",), "m4"), Row(("after",), "dpo")),
            (
                Claim(1, 0, PREFERENCES), Claim(1, 0, DESCRIPTION),
                *(Claim(1, 0, column, within=2.0) for column in ("multi-image", "multi-view", "single-image")),
            ),
            "Rejected descriptions are the right one with a detail changed; preferences is how often the right one has "
            "the higher probability, on the test split. That less than 2 points are little is a choice made here.",
        ),
    )
}  # fmt: skip


# --- the queue --------------------------------------------------------------------------------------------------------


def jobs(tables: Sequence[Table], seeds: int) -> list[tuple[Run, int]]:
    """(run, seed) of everything that the tables need, each once and after what it starts from; seed by seed, so that
    an interrupted queue has whole tables of fewer seeds."""
    found: dict[tuple[str, int], Run] = {}

    def add(name: str, seed: int) -> None:
        run = RUNS[name]
        if run.start in RUNS:
            add(run.start, seed)
        found[name, 1 if run.shared else seed] = run

    for seed in range(1, seeds + 1):
        for table in tables:
            for row in table.rows if seed in table.seeds(seeds) else ():
                add(row.run, seed)
    return [(run, seed) for (_, seed), run in found.items()]


def exams(run: str) -> dict[str, tuple[str, ...]]:
    """Exam -> tasks, of a run: what any table asks it, wanted now or not, so that an exam's answers stay one set."""
    wanted: dict[str, dict[str, None]] = {}
    for table in ALL.values():
        for row in table.rows:
            if row.run == run:
                wanted.setdefault(row.exam, {}).update(dict.fromkeys(table.tasks))
    return {exam: tuple(tasks) for exam, tasks in wanted.items()}
