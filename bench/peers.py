"""python -m bench.peers [--openvino PYTHON] [--keep]: quantised inference on a CPU beside transformers, llama.cpp and
OpenVINO, every phase in turns, in one run.

All sides are made from one random 0.5B-shaped checkpoint, written once into a cache folder. minilava's float32 tokens
are compared with transformers', and the quantised sides with float32, before anything is timed. llama.cpp takes part
where llama-cpp-python is installed, OpenVINO where a Python that has it is named (bench.openvino_peer).

Limits, of which the last columns are the shares reached: arithmetic at the rate of PyTorch's integer product (all
operations of a phase counted, attention's too), reading at the rate of a plain sum.
    decode   every weight of the decoder in its stored bytes, and 98,304 bytes of keys and values per cached token
    prefill  2 x 308 M operations a token in the blocks, 4 x 24 x 1024 x L / 2 in causal attention
    encode   2 x 15.2 M x 26 operations a patch, 4 x 26 x 1152 x 729 in attention
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from bench import llamacpp
from bench.end_to_end import CACHE, PHOTOS, PROMPT, Ours
from bench.harness import cpu_limits, in_turns, median, progress, report
from bench.linear_i8 import integer_limit
from bench.openvino_peer import OpenVINO
from bench.transformers_peer import Transformers
from minilava.checkpoint import write_random
from minilava.inputs.pixels import patches
from minilava.inputs.sample import Recipe
from minilava.quantize import POLICIES, write_quantized

FLOAT, BFLOAT = "transformers float32", "transformers bfloat16"
LLAMA = {f"llama.cpp {kind}": kind for kind in llamacpp.KINDS}
OPENVINO = {f"OpenVINO {kind}": kind for kind in ("int8", "int4")}
SIDES = ("int8", "int4", "float32", FLOAT, BFLOAT, *LLAMA, *OPENVINO)
# Ours over the peers': int8 over transformers' float32, over the best of the 8-bit peers, and int4 over the 4-bit ones.
RATIOS = {"int8 ratio": ("int8", (FLOAT,)), "to the best 8-bit peer": ("int8", ("llama.cpp Q8_0", "OpenVINO int8")),
          "to the best 4-bit peer": ("int4", ("llama.cpp Q4_0", "OpenVINO int4"))}  # fmt: skip
COLUMNS = ["what", "unit", *SIDES, *RATIOS, "target", "int8 % of limit", "int4 % of limit"]
STEPS = 16


class Bench:
    """The sides, and a row per phase: seconds by side become rates."""

    def __init__(self, model: Path, repeats: int, openvino: Path | None):
        self.repeats = repeats
        self.ours = {name: Ours(where) for name, where in (*quantised(model).items(), ("float32", model))}
        self.theirs = {FLOAT: Transformers(model), BFLOAT: Transformers(model, dtype=torch.bfloat16)}
        self.text_only = {}  # these have no tower
        if llamacpp.installed():
            for name, kind in LLAMA.items():
                progress(name)
                file = llamacpp.write_gguf(model, model.with_name(f"{model.name}-{kind}.gguf"), kind)
                self.text_only[name] = llamacpp.LlamaCpp(file, 2048 + STEPS)
        self.openvino = {} if openvino is None else {n: OpenVINO(openvino, model, k) for n, k in OPENVINO.items()}
        self.versions = {
            "transformers": self.theirs[FLOAT].version,
            "llama_cpp": llamacpp.version(),
            "openvino": next((side.version for side in self.openvino.values()), None),
        }
        self.limits = cpu_limits() | {"integer_gops": integer_limit()}
        g = torch.Generator().manual_seed(0)
        self.prompts = {n: torch.randint(151_000, (n,), generator=g).tolist() for n in (512, 2048)}

    def row(self, what: str, unit: str, work: float, calls: dict[str, Callable], target: str, floors: dict) -> dict:
        """work: units of one call. calls give seconds, or are timed as a whole. floors: side -> seconds."""
        progress(what)
        times = {side: median(t) for side, t in in_turns(calls, self.repeats).items()}
        rates = {side: t if unit == "s" else work / t for side, t in times.items()}
        shares = {f"{side} % of limit": 100 * floor / times[side] for side, floor in floors.items()}
        return {
            "what": what,
            "unit": unit,
            **rates,
            **{name: min(times[p] for p in peers if p in times) / times[side]
               for name, (side, peers) in RATIOS.items() if times.keys() & set(peers)},
            "target": target,
        } | shares  # fmt: skip

    def check(self) -> None:
        """AssertionError unless the sides answer alike, as far as their precision goes."""
        progress("check")
        prompt = self.prompts[512]
        tokens = self.ours["float32"].decode([prompt], STEPS)[0][0]
        assert tokens == self.theirs[FLOAT].decode(prompt, STEPS)[0], "float32 tokens differ from transformers'"
        eight = RATIOS["to the best 8-bit peer"][1]  # at 4 bits the near ties of random weights fall either way
        for name, side in (self.text_only | self.openvino).items():
            if name in eight:
                assert side.decode(prompt, 1)[0][0] == tokens[0], f"{name}: another first token than float32"
        view = self.view()
        exact = self.ours["float32"].encode(view)
        for name, least in (("int8", 0.999), ("int4", 0.999)):  # the tower has 8 bits in both
            found = torch.nn.functional.cosine_similarity(self.ours[name].encode(view), exact, dim=-1).mean().item()
            assert found > least, f"{name}: features of a picture have cosine {found:.4f} to float32"
        for side in list(self.openvino.values())[:1]:
            side.encode(self.theirs[FLOAT].processor([Image.open(PHOTOS[0]).convert("RGB")]))
            found = torch.nn.functional.cosine_similarity(torch.from_numpy(side.features), exact, dim=-1).mean().item()
            progress(f"OpenVINO: features have cosine {found:.4f} to float32")

    def view(self) -> torch.Tensor:
        config = self.ours["float32"].vlm.config
        photo = Image.open(PHOTOS[0]).convert("RGB")
        return patches(photo, Recipe("hf").image_config(config), config.vision.patch_size)

    def rows(self) -> list[dict]:
        model = self.ours["float32"].vlm.model
        t, v = model.config.text, model.config.vision
        rate = self.limits["integer_gops"] * 1e9
        found = []

        view, pixels = self.view(), self.theirs[FLOAT].processor([Image.open(PHOTOS[0]).convert("RGB")])
        calls = {n: lambda side=side: side.encode(view) for n, side in self.ours.items()}
        calls |= {n: lambda side=side: side.encode(pixels) for n, side in self.theirs.items()}
        calls |= {"OpenVINO int8": lambda: self.openvino["OpenVINO int8"].encode(pixels)} if self.openvino else {}
        floor = v.patches * (2 * parameters(model.vision.blocks) + 4 * v.layers * v.width * v.patches) / rate
        floors = dict.fromkeys(POLICIES, floor)
        found.append(self.row("encode one view", "views/s", 1, calls, ">= 3.5, 1.2 to OpenVINO, 65 %", floors))

        for n, prompt in self.prompts.items():
            sides = self.ours | self.theirs | self.text_only | self.openvino
            calls = {s: lambda side=side, p=prompt: side.prefill(p) for s, side in sides.items()}
            ops = 2 * parameters(model.text.blocks) * n + 4 * t.layers * t.heads * t.head_dim * n * n / 2
            floors = dict.fromkeys(POLICIES, ops / rate)
            found.append(
                self.row(
                    f"prefill {n} tokens", "tokens/s", n, calls, ">= 3.5, 7 to llama.cpp, 3 to OpenVINO, 50 %", floors
                )
            )

        prompt = self.prompts[512]
        calls = {n: lambda side=side: side.decode([prompt], STEPS)[1] for n, side in self.ours.items()}
        others = self.theirs | self.text_only | self.openvino
        calls |= {n: lambda side=side: side.decode(prompt, STEPS)[1] for n, side in others.items()}
        cached = 2 * 2 * t.layers * t.kv_heads * t.head_dim * (512 + STEPS / 2)
        floors = {n: (stored(self.ours[n].vlm.model.text) + cached) / self.limits["read_gbps"] / 1e9 for n in POLICIES}
        found.append(self.row("decode at 512 tokens", "tokens/s", 1, calls, "1.7 and 80 %, int4 1.8 and 65 %", floors))

        calls = {n: side.answer for n, side in self.ours.items()}
        calls |= {n: lambda side=side: side.answer(PROMPT, PHOTOS, 32) for n, side in self.theirs.items()}
        found.append(self.row("two pictures + 32 tokens", "s", 1, calls, ">= 3.5", {}))
        return found


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def stored(module: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def quantised(model: Path) -> dict[str, Path]:
    """Name -> checkpoint, written beside the float one when absent."""
    found = {name: model.with_name(f"{model.name}-{name}") for name in POLICIES}
    for name, path in found.items():
        if not (path / "config.json").exists():
            progress(f"quantising to {path}")
            write_quantized(model, path, name)
    return found


def process(model: Path, *arguments: str) -> tuple[float, dict]:
    """(Seconds from the start of a process to its end, its JSON) of one question to a checkpoint in the page cache."""
    command = [sys.executable, "-m", "minilava.generate", "--model", str(model), "--json", *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, json.loads(done.stdout)


def processes(model: Path) -> list[dict]:
    """Start and memory of a process of its own, int8 and int4."""
    made = {}
    for name, path in quantised(model).items():
        starts = [process(path, "--prompt", "Say yes or no now.", "--max-new-tokens", "1")[0] for _ in range(3)]
        _, reply = process(path, "--image", str(PHOTOS[0]), "--prompt", "What is it?", "--max-new-tokens", "8")
        made[name] = min(starts), reply["timings"]["peak_memory_bytes"] / 1e9
    start = {"what": "start, text prompt, one token", "unit": "s", "target": "<= 2.5"}
    memory = {"what": "peak memory, one picture", "unit": "GB", "target": "int4 <= 0.65"}
    return [start | {n: s for n, (s, _) in made.items()}, memory | {n: m for n, (_, m) in made.items()}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, default=CACHE / "random-0.5b-hf-float32", help="written when absent")
    parser.add_argument(
        "--openvino", type=Path, metavar="PYTHON", help="a Python with openvino, nncf and optimum-intel"
    )
    parser.add_argument("--keep", action="store_true", help="append the rows to bench/results/peers.jsonl")
    args = parser.parse_args()
    if not (args.model / "config.json").exists():
        progress(f"writing a random 0.5B checkpoint to {args.model}")
        write_random(args.model, shape="0.5b", dialect="hf", seed=0, dtype="float32")
    rows = processes(args.model)
    if not llamacpp.installed():
        progress(f"llama.cpp is left out: {llamacpp.INSTALL}")
    if args.openvino is None:
        progress("OpenVINO is left out: --openvino names a Python that has it (see bench/openvino_peer.py)")
    bench = Bench(args.model, args.repeats, args.openvino)
    bench.check()
    rows = bench.rows() + rows
    rows = [{c: r.get(c, "") for c in COLUMNS} for r in rows]
    report("peers", rows, COLUMNS, args.keep, **bench.versions, limits=bench.limits)


if __name__ == "__main__":
    main()
