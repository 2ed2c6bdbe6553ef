"""python -m minilava.recipes.ablations: train and test everything that the paper's ablations compare (make ablations).

A queue of some forty short runs. It can be interrupted at any moment: the same command goes on where it stopped, skips
what is finished, and ends with the report. --dry-run says what there is to do and how long it takes. The same command
in several processes shares the work; one with a single thread (OMP_NUM_THREADS=1) per core is faster than one with all.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from minilava.config import read_json
from minilava.data.mixture import load_mixture, read_yaml
from minilava.errors import Parser, UserError, command
from minilava.eval.report import table as markdown_table
from minilava.eval.run import write
from minilava.recipes.ablations import exam, plan
from minilava.recipes.ablations.plan import NEW, TINY, Run, Table
from minilava.recipes.ablations.report import JOURNAL, write_report
from minilava.recipes.tiny.__main__ import VOCABULARY
from minilava.train import state
from minilava.train.config import parse
from minilava.train.loop import MODEL, finished, train
from minilava.train.new import write_new

RECIPE = "recipe.json"  # in a run's folder: what it follows; python -m minilava.train reads it, too
LOCK = ".lock"  # in a run's folder: held by the process that is at it
WAIT_S = 1.0  # until another look at what other processes have finished
QUESTION_S = 0.02  # seconds of a question on two cores, for the estimate


def parser() -> Parser:
    p = Parser(prog="python -m minilava.recipes.ablations", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--out", default="runs/ablations", metavar="DIR", help="of the runs (%(default)s)")
    p.add_argument("--results", metavar="DIR", help="of the report; default: DIR of the runs")
    p.add_argument("--only", default=",".join(plan.ALL), metavar="TABLE,...", help="of %(default)s")
    p.add_argument("--seeds", type=int, default=plan.SEEDS, metavar="N", help="at most %(default)s, the default")
    p.add_argument("--questions", type=int, default=plan.QUESTIONS, metavar="N", help="of every task (%(default)s)")
    p.add_argument("--steps-scale", type=float, default=1.0, metavar="X", help="of the planned steps, to try things")
    p.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    unknown = [name for name in args.only.split(",") if name not in plan.ALL]
    if unknown:
        raise UserError(f"--only {unknown[0]}: the tables are {', '.join(plan.ALL)}")
    if not 1 <= args.seeds <= plan.SEEDS or args.questions < 1 or args.steps_scale <= 0:
        raise UserError(f"--seeds is from 1 to {plan.SEEDS}, --questions at least 1, --steps-scale above 0")
    tables = [plan.ALL[name] for name in args.only.split(",")]
    out = Path(args.out)
    if args.dry_run:
        print(preview(out, tables, args.seeds, args.questions, args.steps_scale))
        return
    work(out, tables, args.seeds, args.questions, args.steps_scale)
    print(write_report(out, Path(args.results or out), tables, args.seeds, args.questions, args.steps_scale))


def work(out: Path, tables: Sequence[Table], seeds: int, questions: int, scale: float) -> None:
    """Everything that is missing, in order; what another process is at is left to it, and waited for."""
    with claimed(out / NEW, wait=True):
        begin(out / NEW, scale)
    planned = plan.jobs(tables, seeds)
    jobs = [(f"{number}/{len(planned)}", run, seed) for number, (run, seed) in enumerate(planned, 1)]
    while jobs:
        for job in jobs:  # the first that is free: from the top again after every run, so that seed 1 is whole first
            number, run, seed = job
            start = run.settings(out, seed, scale)["init"]
            with claimed(run.folder(out, seed)) as mine:
                if ready := mine and Path(start).exists():
                    do(out, run, seed, questions, scale, number)
            if ready:
                jobs.remove(job)
                break
        else:
            time.sleep(WAIT_S)


@contextmanager
def claimed(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Whether the folder is this process's until the end of the block. The system gives it back if the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def do(out: Path, run: Run, seed: int, questions: int, scale: float, number: str) -> None:
    """What is missing of one run: its training, its exams."""
    folder, settings = run.folder(out, seed), run.settings(out, seed, scale)
    follow(folder, settings)
    progress = f"{number} {folder.name}"
    if not finished(folder, settings["steps"]):
        print(f"{progress}: {settings['steps']} steps", file=sys.stderr, flush=True)
        timed(out, run, seed, "train", partial(train, parse(settings)))
    for checkpoint in state.finished(folder):  # a finished run keeps its model; 100 MB of optimizer states go
        shutil.rmtree(checkpoint)
    for name, tasks in plan.exams(run.name).items():
        what = (folder / "exams" / name, plan.EXAMS[name], tasks, questions)
        if not exam.done(*what):
            print(f"{progress}: exam {name}, {len(tasks)} tasks", file=sys.stderr, flush=True)
            timed(out, run, seed, name, partial(exam.sit, folder / MODEL, *what))


def begin(new: Path, scale: float) -> None:
    """Untrained weights of the tiny shape, and its vocabulary; a scaled-down queue reads less text for that."""
    if (new / "config.json").exists():
        return
    vocabulary = read_yaml(TINY / "vocabulary.yaml")
    for source in vocabulary["sources"]:
        source["samples"] = max(500, round(source["samples"] * min(1.0, scale)))
    write_new(new, read_json(TINY / "shape.json"), load_mixture(vocabulary), VOCABULARY)


def follow(folder: Path, settings: dict) -> None:
    """Keep the settings in the folder; UserError where it was made with others."""
    path, text = folder / RECIPE, json.dumps(settings, indent=1) + "\n"
    if path.exists() and path.read_text("utf-8") != text:
        raise UserError(f"{path} is not what the plan says: remove {folder}, or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write(path, text)


def timed(out: Path, run: Run, seed: int, work: str, do: Callable[[], object]) -> None:
    """Do it, and write down the seconds even where it is interrupted: they are part of what the tables cost."""
    began = time.perf_counter()
    try:
        do()
    finally:
        line = {"run": run.name, "seed": seed, "work": work, "seconds": round(time.perf_counter() - began, 1)}
        with open(out / JOURNAL, "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")


def preview(out: Path, tables: Sequence[Table], seeds: int, questions: int, scale: float) -> str:
    """The plan as a table, with estimates for two cores."""
    rows, left, total = [], 0.0, 0.0
    for run, seed in plan.jobs(tables, seeds):
        folder, steps, exams = run.folder(out, seed), run.settings(out, seed, scale)["steps"], plan.exams(run.name)
        asked = sum(map(len, exams.values())) * questions
        trained = finished(folder, steps)
        missing = [
            name for name, tasks in exams.items()
            if not exam.done(folder / "exams" / name, plan.EXAMS[name], tasks, questions)
        ]  # fmt: skip
        seconds = steps * run.step_s + asked * QUESTION_S
        total += seconds
        left += (not trained) * steps * run.step_s + sum(len(exams[n]) for n in missing) * questions * QUESTION_S
        of = [t.name.removeprefix("table") for t in tables if any(row.run == run.name for row in t.rows)]
        state = "trained" if trained and missing else "done" if trained else ""
        rows.append([folder.name, run.start, steps, asked, ", ".join(of), f"{seconds / 60:.1f}", state])
    heads = ["run", "goes on from", "steps", "questions", "tables", "minutes", ""]
    end = f"{len(rows)} runs, about {total / 3600:.1f} hours on two cores; {left / 3600:.1f} are left."
    return markdown_table(heads, rows) + "\n\n" + end


if __name__ == "__main__":
    sys.exit(command(main))
