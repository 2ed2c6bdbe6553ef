"""python -m minilava.train CONFIG.yaml [--set key=value]... | new DIR ... | plot RUN..."""

from __future__ import annotations

import sys

from minilava.errors import Parser, command


def train_parser() -> Parser:
    p = Parser(prog="python -m minilava.train", description="Train a stage; run again, it goes on where it stopped.")
    p.add_argument("config", help="YAML file of a stage; or: new, plot (see their --help)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable")
    p.add_argument("--preview", action="store_true", help="show the first batch with its labels in colour and stop")
    return p


def new_parser() -> Parser:
    p = Parser(prog="python -m minilava.train new", description="Write an untrained model of a shape to train.")
    p.add_argument("dst", help="new directory")
    p.add_argument("--shape", required=True, metavar="CONFIG.json", help="config.json of the hf dialect")
    p.add_argument("--data", required=True, metavar="MIXTURE.yaml", help="whose text the vocabulary is learned from")
    p.add_argument("--vocabulary", type=int, default=1020, help="byte-level BPE tokens")
    p.add_argument("--seed", type=int, default=0)
    return p


def plot_parser() -> Parser:
    p = Parser(prog="python -m minilava.train plot", description="Draw the curves of runs to RUN/curves.png.")
    p.add_argument("runs", nargs="+", metavar="RUN")
    p.add_argument("--out", help="one PNG for all runs")
    return p


def run(argv: list[str]) -> None:
    if argv[:1] == ["new"]:
        from pathlib import Path

        from minilava.config import read_json
        from minilava.data.mixture import load_mixture
        from minilava.train.new import write_new

        args = new_parser().parse_args(argv[1:])
        print(write_new(args.dst, read_json(Path(args.shape)), load_mixture(args.data), args.vocabulary, args.seed))
    elif argv[:1] == ["plot"]:
        from minilava.train.plot import plot

        args = plot_parser().parse_args(argv[1:])
        print("\n".join(map(str, plot(args.runs, args.out))))
    else:
        from minilava.train.config import load_config
        from minilava.train.loop import show, train

        args = train_parser().parse_args(argv)
        config = load_config(args.config, args.set)
        if args.preview:
            show(config)
        else:
            print(train(config))


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0; 2 for what the user can fix, with one line on stderr; 130 for Ctrl-C (the run is saved)."""
    return command(lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
