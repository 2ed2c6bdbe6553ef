"""python -m minilava.generate: ask a checkpoint about pictures, a video or a folder of views."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence

from minilava.errors import Parser, UserError, command
from minilava.inputs.geometry import NEWLINE_POSITIONS, POOLS

DEFAULT_PROMPT = "Describe what you see."
DTYPES = ("auto", "float32", "bfloat16", "float16")


class Medium(argparse.Action):
    """Collects --image, --video and --views in one list, in the order in which they were given."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.media = [*namespace.media, (option_string.removeprefix("--"), values)]


def parser() -> Parser:
    p = Parser(
        prog="python -m minilava.generate",
        description="Answer a prompt about pictures, videos and views. Text goes to stdout, all else to stderr.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    p.set_defaults(media=[])
    p.add_argument("--model", metavar="PATH", help="checkpoint directory, either dialect; default: the embedded model")
    p.add_argument("--image", metavar="FILE", action=Medium, default=argparse.SUPPRESS, help="may repeat")
    p.add_argument("--video", metavar="FILE", action=Medium, default=argparse.SUPPRESS, help="or a folder of frames")
    p.add_argument("--views", metavar="DIR", action=Medium, default=argparse.SUPPRESS, help="3D views, in name order")
    p.add_argument("--frames", type=int, metavar="N", help="frames of each video; default: the checkpoint's own, or 16")
    p.add_argument("--prompt", metavar="TEXT", help="<image> and <video> say where media go; others go in front")
    p.add_argument("--chat", action="store_true", help="a conversation: /image FILE, /video FILE, /reset, /quit")
    p.add_argument("--layout", choices=("interleaved", "front"), default="interleaved")
    p.add_argument("--recipe", choices=("authors", "hf", "train"), help="input format; default: the checkpoint's own")
    p.add_argument("--anyres", action=argparse.BooleanOptionalAction, help="tile pictures; default: the checkpoint's")
    p.add_argument("--pool", choices=POOLS, help="a quarter of a video's tokens; default: the checkpoint's")
    p.add_argument("--newline", choices=NEWLINE_POSITIONS, default="grid", help="newline vectors of pooled videos")
    p.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    p.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P")
    p.add_argument("--top-k", type=int, default=0, metavar="K", help="0 is off")
    p.add_argument("--repetition-penalty", type=float, metavar="R", help="default: the checkpoint's own")
    p.add_argument("--seed", type=int, default=0, metavar="S")
    p.add_argument("--dtype", choices=DTYPES, default="auto")
    p.add_argument("--quant", choices=("none", "int8", "int4"), default="none")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--threads", type=int, metavar="N", help="default: the physical cores this process may use")
    p.add_argument("--draft", type=int, default=0, metavar="N", help="guess N tokens a step; the same text, sooner")
    p.add_argument("--cache-dir", metavar="DIR", help="keep encoded pictures there for the next run")
    p.add_argument(
        "--cache-mb", type=int, default=1024, metavar="N", help="memory for pictures and prompts that come again"
    )
    p.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    return p


def request_options(args: argparse.Namespace) -> dict:
    return dict(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        recipe=args.recipe,
        layout=args.layout,
        anyres=args.anyres,
        newline_position=args.newline,
        frames=args.frames,
        pool=args.pool,
        draft=args.draft,
    )


def status_line(reply) -> str:
    t = reply.timings
    cached = f", {t['cached_prompt_tokens']} read before" if t["cached_prompt_tokens"] else ""
    drafts = f", {t['draft_accepted']} of {t['draft_tokens']} guesses right" if t["draft_tokens"] else ""
    return (
        f"[{reply.prompt_tokens} prompt tokens ({reply.image_tokens} of images{cached}), "
        f"{len(reply.token_ids)} new{drafts} | "
        f"load {t['load_s']:.2f} s, media {t['media_s']:.2f}, preprocess {t['preprocess_s']:.3f}, "
        f"encode {t['encode_s']:.2f}, prefill {t['prefill_s']:.2f} ({t['prefill_tokens_per_s']:.0f}/s), "
        f"decode {t['decode_s']:.2f} ({t['decode_tokens_per_s']:.1f}/s) | "
        f"recipe {reply.recipe}, {reply.dtype}]"
    )


def progress_bars(items: Iterable, what: str) -> Iterable:
    from tqdm import tqdm

    return tqdm(items, desc=what, leave=False, disable=not sys.stderr.isatty())


def run(args: argparse.Namespace) -> None:
    if args.frames is not None and args.frames < 1:
        raise UserError("--frames must be at least 1")
    if args.max_new_tokens < 1:
        raise UserError("--max-new-tokens must be at least 1")
    if args.draft < 0 or args.cache_mb < 0:
        raise UserError("--draft and --cache-mb must be 0 or more")
    if args.chat and args.json:
        raise UserError("--chat and --json do not go together")
    if not args.chat and not args.media and not args.prompt:
        raise UserError("nothing to answer: give --prompt, or --image, --video or --views")
    from minilava.device import use_threads
    from minilava.runtime.vlm import load  # torch is only imported once the arguments are sound

    use_threads(args.threads)
    vlm = load(args.model, args.device, args.dtype, args.quant, args.cache_mb << 20, args.cache_dir, lean=True)
    vlm.progress = progress_bars
    if args.chat:
        from minilava.runtime.repl import chat

        return chat(vlm, args.media, request_options(args))
    stream = vlm.stream_media(args.prompt or DEFAULT_PROMPT, args.media, **request_options(args))
    for piece in stream:
        if not args.json:
            print(piece, end="", flush=True)
    if args.json:
        print(json.dumps(stream.reply.as_dict(), ensure_ascii=False))
    else:
        print(flush=True)
        print(status_line(stream.reply), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    return command(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
