"""python -m bench.quality [--world] [--keep]: what quantisation costs a language model, beside llama.cpp's formats.

SmolLM2-135M over 20,480 tokens of Python's language reference (pydoc_data.topics), in windows of 1,024. Every side
starts from the same float32 weights, those of the package's 4-bit file. perplexity: exp of the mean negative log
likelihood of the next token. KL: mean over tokens of KL(float32 || side) of the next token's distribution, in nats.
same: share of positions at which the likeliest token is the same. calibrated: on the 8,192 tokens that follow.

llama.cpp itself runs where llama-cpp-python is installed. "weights alone" puts the values that its files hold into
minilava's float32 model: its own rounding of activations is left out, and nothing has to be built.

--world: instead, the embedded model's accuracy on the M4 world, per scenario, in percent (bench.world's questions).
"""

from __future__ import annotations

import argparse
import math
import pydoc_data.topics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import minilava
from bench import llamacpp, smollm2, world
from bench.harness import progress, report
from minilava.calibrate import mean_squares
from minilava.inputs.pack import pack
from minilava.inputs.sample import Sample
from minilava.model.linear import Quantized, quantized
from minilava.model.llava import LLaVA
from minilava.quantize import POLICIES, Quantization, quantize
from minilava.runtime.cache import KVCache

WINDOW, WINDOWS, CALIBRATION = 1024, 20, 8
COLUMNS = ["side", "bits per weight", "perplexity", "KL", "same"]
Side = Callable[[list[int]], Tensor]  # ids (T) -> logits (T, V)


def text_ids(tokenizer, count: int) -> list[int]:
    text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    return tokenizer.encode(text[: 8 * count]).ids[:count]


def ours(model: LLaVA) -> Side:
    """As it generates: keys and values go through the cache, whose rounding counts."""
    text = model.text

    def logits(ids: list[int]) -> Tensor:
        cache = KVCache(model.config.text, [len(ids)], text.cache_dtype, torch.device("cpu"))
        positions, segments = cache.extend([0], [len(ids)])
        with torch.inference_mode():
            return text.logits(text(text.embed(torch.tensor(ids)), positions, segments, cache.layers))

    return logits


def with_policy(model: LLaVA, policy: str, importance: dict[str, Tensor] | None = None) -> LLaVA:
    """The model with quantised weights."""
    bits = Quantization(policy, POLICIES[policy], model.config.text.vocab_rows).modules(model.config)
    made = quantized(LLaVA(model.config), bits)
    made.load_state_dict(quantize(model.state_dict(), bits, importance=importance))
    return made.eval().requires_grad_(False)


def bits_per_weight(model: LLaVA) -> float:
    """Of all matrices of the decoder, scales included."""
    stored, weights = 0, 0
    for module in model.text.modules():
        if isinstance(module, Quantized):
            stored += 8 * (module.values.nbytes + module.scales.nbytes)
            weights += module.form[0] * module.form[1]
    return stored / weights


def sides(reader, folder: Path, calibration: list[int]) -> dict[str, tuple[float, Side]]:
    """Name -> (bits per weight, logits). The first is the reference."""
    exact = smollm2.load(reader)
    found: dict[str, tuple[float, Side]] = {"float32": (32.0, ours(exact))}
    for policy in POLICIES:
        model = with_policy(exact, policy)
        found[f"minilava {policy}"] = bits_per_weight(model), ours(model)
    packs = [pack([Sample(calibration[i : i + WINDOW], [])], 1) for i in range(0, len(calibration), WINDOW)]
    model = with_policy(exact, "int4", mean_squares(exact, packs))
    found["minilava int4, calibrated"] = bits_per_weight(model), ours(model)
    tensors = smollm2.dequantized(reader)
    for kind in llamacpp.KINDS:
        file = llamacpp.rewrite(reader, tensors, folder / f"{kind}.gguf", kind)
        bits, values = llamacpp.weights(file)
        if llamacpp.installed():
            found[f"llama.cpp {kind}"] = bits, llamacpp.LlamaCpp(file, WINDOW).logits
        model = LLaVA(exact.config)
        model.text.load_state_dict(smollm2.state(values, exact.config.text))
        found[f"llama.cpp {kind}, weights alone"] = bits, ours(model.eval())
    return found


def measure(found: dict[str, tuple[float, Side]], ids: list[int], window: int = WINDOW) -> list[dict]:
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in found}
    windows = [ids[i : i + window] for i in range(0, len(ids), window)]
    for n, part in enumerate(windows):
        progress(f"window {n + 1} of {len(windows)}")
        following, reference = torch.tensor(part[1:]), None
        for name, (_, logits) in found.items():
            likely = logits(part)[:-1].log_softmax(-1)
            reference = likely if reference is None else reference
            surprise = -likely.gather(1, following[:, None]).double().sum()
            kl = (reference.exp() * (reference - likely)).sum(-1).double().sum()
            same = (likely.argmax(-1) == reference.argmax(-1)).double().sum()
            sums[name] += torch.stack((surprise, kl, same))
    count = len(ids) - len(windows)
    rows = []
    for name, total in sums.items():
        surprise, kl, same = (total / count).tolist()
        rows.append(dict(zip(COLUMNS, (name, found[name][0], math.exp(surprise), kl, same), strict=True)))
    return rows


def on_the_world(per_task: int) -> list[dict]:
    rows: dict[str, dict] = {}
    for quant in ("none", *POLICIES):
        by_task = world.measure(minilava.load(dtype="float32", quant=quant), world.questions(per_task), blind=False)
        for name, row in world.means(by_task).items():
            side = "float32" if quant == "none" else quant
            rows.setdefault(name, {"scenario": name})[side] = 100 * row["accuracy"]
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--keep", action="store_true", help="append the rows to bench/results/quality.jsonl")
    parser.add_argument("--world", action="store_true", help="the embedded model on the M4 world")
    parser.add_argument("--per-task", type=int, default=200, help="with --world")
    args = parser.parse_args()
    if args.world:
        rows = on_the_world(args.per_task)
        settings = {"model": "embedded", "split": "test", "per_task": args.per_task}
        return report("quality_world", rows, list(rows[0]), args.keep, **settings)
    if not smollm2.installed():
        raise SystemExit(f"bench.quality {smollm2.INSTALL}")
    reader = smollm2.reader()
    with tempfile.TemporaryDirectory() as folder:
        ids = text_ids(smollm2.tokenizer(reader), (args.windows + CALIBRATION) * WINDOW)
        text, calibration = ids[: args.windows * WINDOW], ids[args.windows * WINDOW :]
        rows = measure(sides(reader, Path(folder), calibration), text)
    report("quality", rows, COLUMNS, args.keep, llama_cpp=llamacpp.version(), tokens=args.windows * WINDOW)


if __name__ == "__main__":
    main()
