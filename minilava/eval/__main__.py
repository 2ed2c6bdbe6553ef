"""python -m minilava.eval SUITE --model PATH --data DIR | diff A B"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from minilava.errors import Parser, UserError, command
from minilava.eval.metrics import SCORERS
from minilava.eval.suites import SUITES, suite
from minilava.generate import DTYPES
from minilava.inputs.chat import LAYOUTS, RECIPES
from minilava.inputs.geometry import POOLS

ASKING = ("recipe", "layout", "anyres", "frames", "pool", "repetition_penalty")


def parser() -> Parser:
    p = Parser(
        prog="python -m minilava.eval",
        description="Run a benchmark and write the paper's table with this model in it; run again, it goes on.",
        epilog="Under torchrun the samples are shared out among the processes; the report is the same.",
    )
    commands = p.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for name in SUITES:
        add_suite(commands.add_parser(name, help="a suite"))
    d = commands.add_parser("diff", help="compare two runs of a suite, sample by sample")
    d.add_argument("a", metavar="A", help="folder of a run")
    d.add_argument("b", metavar="B", help="folder of another")
    return p


def add_suite(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", metavar="PATH", help="checkpoint directory; default: the embedded model")
    p.add_argument("--data", metavar="DIR", help="the benchmark's folder, as published (the world needs none)")
    p.add_argument("--out", metavar="DIR", help="default: runs/eval/SUITE")
    p.add_argument("--limit", type=int, metavar="N", help="the first N samples of every data set")
    p.add_argument("--scorer", choices=SCORERS, default="authors", help="of the interleave bench (%(default)s)")
    p.add_argument("--max-new-tokens", type=int, metavar="N", help="default: the suite's own; 16 for lmms-eval")
    p.add_argument("--blind", action="store_true", help="every picture grey: what the questions alone give away")
    p.add_argument("--skip-bad", action="store_true", help="leave out and count what cannot be asked, and go on")
    p.add_argument("--recipe", choices=RECIPES, help="input format; default: the checkpoint's own")
    p.add_argument("--layout", choices=LAYOUTS, default="interleaved")
    p.add_argument("--anyres", action=argparse.BooleanOptionalAction, help="tile pictures; default: the checkpoint's")
    p.add_argument("--frames", type=int, metavar="N", help="of each video; default: the checkpoint's own, or 16")
    p.add_argument("--pool", choices=POOLS, help="a quarter of a video's tokens; default: the checkpoint's")
    p.add_argument("--repetition-penalty", type=float, metavar="R", help="default: the checkpoint's own")
    p.add_argument("--batch-tokens", type=int, metavar="N", help="of a batch, answers included (4096; GPU: 32768)")
    p.add_argument("--judge", metavar="URL", help="OpenAI-compatible endpoint that grades open answers about videos")
    p.add_argument("--judge-model", metavar="NAME", help="what to ask it for")
    p.add_argument(
        "--judge-key", metavar="VARIABLE", default="OPENAI_API_KEY", help="environment variable (%(default)s)"
    )
    p.add_argument("--judge-budget", type=int, metavar="N", help="most requests of this run (no limit)")
    p.add_argument("--judge-dry-run", action="store_true", help="only count what would be asked")
    p.add_argument("--html", type=int, nargs="?", const=50, metavar="N", help="also OUT/page.html: N samples of every"
                   " data set with their pictures (50; 0: all)")  # fmt: skip
    p.add_argument("--radar", action="store_true", help="also OUT/radar.png and OUT/radar.svg")
    p.add_argument("--dtype", choices=DTYPES, default="auto")
    p.add_argument("--quant", choices=("none", "int8", "int4"), help="weights; default: as the checkpoint holds them")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def evaluate(args: argparse.Namespace) -> None:
    if args.limit is not None and args.limit < 1:
        raise UserError("--limit must be at least 1")
    chosen = suite(args.suite)
    if args.judge and not args.judge_model:
        raise UserError("--judge needs --judge-model NAME")
    if args.scorer != "authors" and not chosen.scorers:
        raise UserError(f"--scorer {args.scorer}: {args.suite} has one scorer only; leave --scorer out")
    data = Path(args.data) if args.data else None
    items = list(chosen.items(data, args.limit or chosen.limit))  # bad data is named before a model is loaded
    from minilava.device import use_threads
    from minilava.eval.report import REPORT, commit, encode, markdown, report
    from minilava.eval.run import Options, run, write
    from minilava.runtime.vlm import load
    from minilava.train.ranks import Ranks

    use_threads(None)
    ranks = Ranks.start(args.device)
    vlm = load(args.model, args.device, args.dtype, args.quant)
    tokens = args.max_new_tokens or (16 if args.scorer == "lmms-eval" else chosen.max_new_tokens)
    asking = {key: getattr(args, key) for key in ASKING} | {"max_new_tokens": tokens}
    options = Options(args.scorer, args.blind, args.batch_tokens, args.skip_bad, asking)
    settings = settings_of(args, vlm, asking)
    out = Path(args.out or Path("runs/eval") / args.suite)
    lines = run(vlm, iter(items), out, settings, options, ranks)
    if ranks.first:
        if args.judge:
            lines = judged(args, lines, out)
        judges = sorted({line["judge"] for line in lines if "judge" in line})
        settings |= {"judge": ", ".join(judges)} if judges else {}
        made = report(chosen.layout, lines, settings | {"commit": commit()})
        write(out / REPORT, encode(made))
        text = markdown(chosen.layout, made)
        write(out / "report.md", text)
        if args.html is not None:
            from minilava.eval.page import page

            write(out / "page.html", page(items, lines, made["settings"], settings["frames"], args.html))
        if args.radar:
            from minilava.eval.radar import radar

            for kind, picture in radar(chosen.layout, made).items():
                write(out / f"radar.{kind}", picture)
        print(text)
    ranks.stop()


def settings_of(args: argparse.Namespace, vlm: Any, asking: dict) -> dict:
    """All that answers depend on, with the checkpoint's own choices spelled out: the stamp of the report."""
    frames, pool = vlm.take_frames(dict(asking))
    penalty = vlm.config.repetition_penalty if args.repetition_penalty is None else args.repetition_penalty
    return {
        "suite": args.suite,
        "model": args.model or "embedded",
        "recipe": args.recipe or vlm.config.recipe,
        "layout": args.layout,
        "anyres": args.anyres,
        "frames": frames,
        "pool": pool,
        "scorer": args.scorer,
        "max_new_tokens": asking["max_new_tokens"],
        "repetition_penalty": penalty,
        "dtype": str(vlm.engine.dtype).removeprefix("torch."),
        "quant": vlm.quant,
        "blind": args.blind,
    }


def judged(args: argparse.Namespace, lines: list[dict], out: Path) -> list[dict]:
    """The lines with the judge's grades, also on disk."""
    from minilava.eval.judge import Judge, grade
    from minilava.eval.run import SAMPLES, write_lines

    key = os.environ.get(args.judge_key, "")
    judge = Judge(args.judge, args.judge_model, out / "judge.jsonl", key, args.judge_budget, args.judge_dry_run)
    lines = grade(lines, judge)
    if judge.dry:
        print(f"the judge would be asked {judge.wanted} times, {judge.new_characters:,} characters", file=sys.stderr)
    elif judge.wanted:
        print(f"the judge was asked {judge.asked} times", file=sys.stderr)
    write_lines(out / SAMPLES, lines)
    return lines


def dispatch(args: argparse.Namespace) -> None:
    if args.suite == "diff":
        from minilava.eval.compare import diff

        print(diff(Path(args.a), Path(args.b)))
    else:
        evaluate(args)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0; 2 for what the user can fix, with one line on stderr; 130 for Ctrl-C (what is answered stays)."""
    return command(lambda: dispatch(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
