"""The peer OpenVINO, in a Python of its own, because its exporter wants another transformers than the rest.

    python -m venv ov && ov/bin/pip install torch==2.13.0 optimum-intel openvino nncf
    python -m bench.peers --openvino ov/bin/python

As a script, under that Python, it answers lines of JSON on stdin with lines of JSON on stdout. The decoder's weights
have 8 bits, or 4 in OpenVINO's default form; tower and projector are quantised whole, weights and activations (nncf).
All else is OpenVINO's default: a cache of 8 bits, activations rounded in groups as they come in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


class OpenVINO:
    """One kind of weights, "int8" or "int4", behind the calls of bench.transformers_peer.Transformers."""

    def __init__(self, python: Path, checkpoint: Path, kind: str):
        self.folder = checkpoint.with_name(f"{checkpoint.name}-openvino")
        self.process = subprocess.Popen(
            [python, __file__, str(checkpoint), str(self.folder), kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))},
        )  # fmt: skip
        self.version = self._read()["version"]

    def prefill(self, prompt: list[int]) -> float:
        """Seconds."""
        return self._ask(do="prefill", prompt=prompt)["seconds"]

    def decode(self, prompt: list[int], steps: int) -> tuple[list[int], float]:
        """Greedy tokens after a prompt, and the seconds per step after the first token."""
        found = self._ask(do="decode", prompt=prompt, steps=steps)
        return found["tokens"], found["seconds"]

    def encode(self, pixels: np.ndarray) -> float:
        """float32 (n, 3, 384, 384) -> seconds; ``features`` has the result."""
        np.save(self.folder / "pixels.npy", pixels)
        return self._ask(do="encode")["seconds"]

    @property
    def features(self) -> np.ndarray:
        return np.load(self.folder / "features.npy")

    def _ask(self, **request: object) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the OpenVINO process has stopped; its message stands above")
        return json.loads(line)


def export_decoder(checkpoint: Path, folder: Path, kind: str) -> Path:
    """The decoder as OpenVINO's stateful model with its head on the last row alone; made when absent."""
    if (folder / kind / "openvino_model.xml").exists():
        return folder / kind
    import transformers
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    plain = folder / "decoder"
    if not (plain / "config.json").exists():
        whole = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint)
        decoder = transformers.Qwen2ForCausalLM(whole.config.text_config)
        decoder.model.load_state_dict(whole.model.language_model.state_dict())
        decoder.lm_head.weight = whole.lm_head.weight
        decoder.save_pretrained(plain)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (plain / file).write_bytes((checkpoint / file).read_bytes())
    config = OVWeightQuantizationConfig(bits={"int8": 8, "int4": 4}[kind])
    model = OVModelForCausalLM.from_pretrained(plain, export=True, quantization_config=config, compile=False)
    model.save_pretrained(folder / kind)
    return folder / kind


def export_tower(checkpoint: Path, folder: Path) -> Path:
    """Tower and projector, weights and activations in 8 bits, calibrated on noise around the picture's range."""
    file = folder / "tower.xml"
    if file.exists():
        return file
    import nncf
    import openvino
    import torch
    import transformers

    whole = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()

    class Tower(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            states = whole.model.vision_tower(pixels, output_hidden_states=True).hidden_states
            return whole.model.multi_modal_projector(states[whole.config.vision_feature_layer])

    tower = Tower()
    tower.vision, tower.projector = whole.model.vision_tower, whole.model.multi_modal_projector
    pixels = np.load(folder / "pixels.npy")
    model = openvino.convert_model(tower, example_input=torch.from_numpy(pixels))
    rng = np.random.default_rng(0)
    views = [np.clip(pixels + rng.normal(0, 0.1, pixels.shape), -1, 1).astype(np.float32) for _ in range(4)]
    model = nncf.quantize(model, nncf.Dataset(views), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(views))
    openvino.save_model(model, file, compress_to_fp16=False)
    return file


def last_row_only(model) -> None:
    """Put a slice in front of the head, as OpenVINO GenAI does: logits of the last row alone."""
    from openvino import opset13 as op

    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    one, end, axis = (op.constant([n], dtype=np.int64) for n in (-1, np.iinfo(np.int64).max, 1))
    last = op.slice(node.input_value(0), one, end, op.constant([1], dtype=np.int64), axis)
    node.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


def serve(checkpoint: Path, folder: Path, kind: str) -> None:
    import openvino

    out = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not get between the answers

    def answer(**found: object) -> None:
        print(json.dumps(found), file=out, flush=True)

    folder.mkdir(exist_ok=True)
    core = openvino.Core()
    model = core.read_model(export_decoder(checkpoint, folder, kind) / "openvino_model.xml")
    last_row_only(model)
    settings = {"INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)), "PERFORMANCE_HINT": "LATENCY"}
    decoder = core.compile_model(model, "CPU", settings).create_infer_request()
    tower = None

    def run(ids: list[int], past: int) -> int:
        """The likeliest token after ids."""
        n = len(ids)
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, past + n), np.int64),
            "position_ids": np.arange(past, past + n, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        decoder.infer(inputs)
        return int(decoder.get_tensor("logits").data[0, -1].argmax())

    answer(version=openvino.__version__.split("-")[0])
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "encode":
            if tower is None:
                compiled = core.compile_model(export_tower(checkpoint, folder), "CPU", settings)
                tower = compiled.create_infer_request()
            pixels = np.load(folder / "pixels.npy")
            began = time.perf_counter()
            features = next(iter(tower.infer([pixels]).values()))
            seconds = time.perf_counter() - began
            np.save(folder / "features.npy", features)
            answer(seconds=seconds)
            continue
        prompt = request["prompt"]
        decoder.reset_state()
        began = time.perf_counter()
        tokens = [run(prompt, 0)]
        if request["do"] == "prefill":
            answer(seconds=time.perf_counter() - began)
            continue
        began = time.perf_counter()
        for step in range(request["steps"]):
            tokens.append(run(tokens[-1:], len(prompt) + step))
        answer(tokens=tokens, seconds=(time.perf_counter() - began) / request["steps"])


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
