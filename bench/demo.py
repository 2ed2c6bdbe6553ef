"""make demo: the main job on bundled pictures through a random 0.5B-shaped checkpoint, checked against transformers.

No trained checkpoint ships with this version, so the words are noise; what the demo shows is the whole path at full
size, its timings, and that its tokens are the reference's.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import minilava
from minilava.checkpoint import write_random
from minilava.errors import command
from minilava.generate import status_line

ASSETS = Path(minilava.__file__).parent / "assets"
PHOTOS = [ASSETS / "cat.jpg", ASSETS / "rocket.jpg"]
PROMPT = "What do these two pictures have in common?"
NEW_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="where the random checkpoint is kept")
    args = parser.parse_args()
    print("The weights are random: the words below are noise. They show the path and its speed, not understanding.\n")
    if not (args.model / "config.json").exists():
        began = time.perf_counter()
        write_random(args.model, shape="0.5b", dialect="hf", seed=0)
        print(f"wrote a random 0.5B checkpoint to {args.model} in {time.perf_counter() - began:.0f} s")
    vlm = minilava.load(args.model, dtype="float32")
    print(f"pictures  {', '.join(p.name for p in PHOTOS)}\nprompt    {PROMPT}\nanswer    ", end="")
    stream = vlm.stream(PROMPT, PHOTOS, max_new_tokens=NEW_TOKENS)
    for piece in stream:
        print(piece.replace("\n", " "), end="", flush=True)
    print(f"\n{status_line(stream.reply)}")
    if find_spec("transformers") is None:
        print('the reference is not installed, so nothing is compared; pip install "minilava[reference]" to see it')
        return
    from bench.peers import Transformers

    began = time.perf_counter()
    expected = Transformers(args.model).answer(PROMPT, PHOTOS, NEW_TOKENS)
    same = expected == stream.reply.token_ids
    seconds = time.perf_counter() - began
    print(f"transformers gives {'the same' if same else 'OTHER'} tokens, in {seconds:.1f} s with loading")
    if not same:
        print(f"minilava     {stream.reply.token_ids}\ntransformers {expected}")
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(command(main))
