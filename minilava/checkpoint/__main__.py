"""python -m minilava.checkpoint inspect | convert | random"""

from __future__ import annotations

import argparse
import sys

from minilava.checkpoint.convert import convert
from minilava.checkpoint.reader import open_checkpoint
from minilava.checkpoint.summary import describe
from minilava.checkpoint.synthetic import DIALECTS, DTYPES, SHAPES, write_random
from minilava.errors import Parser, UserError, command


def parser() -> argparse.ArgumentParser:
    main = Parser(prog="python -m minilava.checkpoint", description="Look at, convert and make checkpoints.")
    commands = main.add_subparsers(dest="command", required=True)
    p = commands.add_parser("inspect", help="say what a checkpoint is")
    p.add_argument("path")
    p.add_argument("--check", action="store_true", help="read every value and look for NaN and infinity")
    p = commands.add_parser("convert", help="write a checkpoint in the other dialect, bit for bit")
    p.add_argument("src")
    p.add_argument("dst")
    p.add_argument("--to", choices=DIALECTS, required=True)
    p = commands.add_parser("random", help="write a random checkpoint for tests and benchmarks")
    p.add_argument("dst")
    p.add_argument("--shape", choices=SHAPES, default="tiny")
    p.add_argument("--dialect", choices=DIALECTS, default="original")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    p.add_argument("--tokenizer", default="auto", help="auto, byte, a tokenizer.json, a ranks file or a directory")
    return main


def run(args: argparse.Namespace) -> None:
    if args.command == "inspect":
        text, sound = describe(open_checkpoint(args.path), args.check)
        print(text)
        if not sound:
            raise UserError(f"{args.path} holds NaN or infinity: fetch it again, or do not use it")
    elif args.command == "convert":
        for warning in convert(args.src, args.dst, args.to, progress=True):
            print(f"minilava: warning: {warning}", file=sys.stderr)
    else:
        write_random(args.dst, args.shape, args.dialect, args.seed, args.dtype, args.tokenizer, progress=True)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0; 2 for what the user can fix, with one line on stderr; 130 for Ctrl-C."""
    return command(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
