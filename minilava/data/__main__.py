"""python -m minilava.data check | stats | world"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from minilava.data.check import Options, check
from minilava.data.composition import compare, dataset_of
from minilava.data.records import BadRecord, data_files, open_records
from minilava.errors import Parser, UserError, command
from minilava.tokenizer import Tokenizer

STATUS = "Exit status: 0 when every record is sound, 1 when one is bad, 2 for what the user can fix."


def parser(argv: list[str]) -> argparse.ArgumentParser:
    main = Parser(prog="python -m minilava.data", description="Check, count and make training data.")
    commands = main.add_subparsers(dest="command", required=True)
    p = commands.add_parser("check", help="name every damaged record of a data set", epilog=STATUS)
    p.add_argument("file", help="a .json, .jsonl or .tar, a brace list, a glob, or a folder of such files")
    p.add_argument("--images", metavar="DIR", help="what media are named from (default: the record file's folder)")
    p.add_argument("--tokenizer", metavar="DIR", help="count tokens with the tokenizer of this model, not words")
    p.add_argument("--max-tokens", type=int, metavar="N", help="records of more tokens are bad; a picture counts 729")
    p.add_argument("--max-errors", type=int, default=100, metavar="N", help="list N faults and count the rest; 0: all")
    p.add_argument("--media", action=argparse.BooleanOptionalAction, default=True, help="open pictures and videos")
    p.add_argument("--decode", action=argparse.BooleanOptionalAction, default=True,
                   help="read all pixels, which finds pictures cut short; --no-decode reads headers only")  # fmt: skip
    p.add_argument("--workers", type=int, default=0, metavar="N", help="threads (default: one per core, at most 8)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p = commands.add_parser("stats", help="the paper's Table 15 beside what is on disk")
    p.add_argument("file", nargs="*", help="data files, as for check")
    p = commands.add_parser("world", help="write procedural training data")
    if argv[:1] == ["world"]:  # its generators are imported for it alone
        from minilava.data.world import write

        write.add_arguments(p)
    return main


def run_check(args: argparse.Namespace) -> int:
    """The exit status."""
    files = data_files(args.file)
    if args.max_tokens is not None and args.tokenizer is None:
        raise UserError("--max-tokens needs --tokenizer: without one only words can be counted")
    if args.images is not None and not Path(args.images).is_dir():
        raise UserError(f"images folder {args.images!r} does not exist; check the path")
    if args.media and args.decode and importlib.util.find_spec("av") is None:
        print(
            'minilava: warning: without PyAV (pip install "minilava[video]") no video file is opened', file=sys.stderr
        )
    tokenizer = Tokenizer.load(args.tokenizer) if args.tokenizer else None
    faults, listed = 0, []
    with tqdm(unit=" records", file=sys.stderr, disable=None) as bar:

        def tell(file: str, line: int, reason: str) -> None:
            nonlocal faults
            faults += 1
            if args.max_errors and faults > args.max_errors:
                return
            if args.json:
                listed.append({"file": file, "line": line, "reason": reason})
            else:
                bar.write(f"{file}:{line}: {reason}", file=sys.stdout)

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        options = Options(args.images, args.media, args.decode, tokenizer, args.max_tokens, args.workers)
        report = check(files, options, tell, progress)
    if args.json:
        print(json.dumps({"files": files, **report.as_dict(), "faults": faults, "errors": listed}))
    else:
        if faults > args.max_errors > 0:
            print(f"... and {faults - args.max_errors:,} more faults (--max-errors 0 lists all)")
        print(report)
    return int(report.bad > 0)


def run_stats(args: argparse.Namespace) -> int:
    counts: Counter[str] = Counter()
    for file in (f for name in args.file for f in data_files(name)):
        records = open_records(file)
        for i in tqdm(range(len(records)), desc=file, file=sys.stderr, disable=None):
            try:
                counts[dataset_of(records.read(i))] += 1
            except BadRecord:
                counts["(damaged)"] += 1
    print(compare(counts))
    return 0


def run(args: argparse.Namespace) -> int:
    if args.command == "check":
        return run_check(args)
    if args.command == "stats":
        return run_stats(args)
    from minilava.data.world import write

    write.run(args)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit status: as ``check`` says in its help; 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    found: list[int] = []
    return command(lambda: found.append(run(parser(argv).parse_args(argv)))) or found[0]


if __name__ == "__main__":
    sys.exit(main())
