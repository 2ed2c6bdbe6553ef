"""The reference, transformers, behind the few calls that the benchmarks compare with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

USABLE = 151646  # ids past the tokenizer are padding rows, which minilava never emits (spec 1.5)


def siglip_processor():
    """The Hugging Face SigLIP image processor (its Pillow backend where torchvision is missing) as a function from RGB
    PIL images to float32 (n, 3, 384, 384)."""
    import transformers

    for name in ("SiglipImageProcessorPil", "SiglipImageProcessor"):
        if hasattr(transformers, name):
            try:
                processor = getattr(transformers, name)(
                    size={"height": 384, "width": 384}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
                )
            except ImportError:
                continue
            return lambda images: np.stack(processor(images, return_tensors="np")["pixel_values"])
    raise ImportError("transformers has no SigLIP image processor that runs here")


class Transformers:
    """LlavaForConditionalGeneration in float32 on the CPU, from a checkpoint in the Hugging Face dialect."""

    def __init__(self, path: Path):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        began = time.perf_counter()
        self.model = transformers.LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
        self.load_s = time.perf_counter() - began
        self.version = transformers.__version__
        self.processor = siglip_processor()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    @torch.inference_mode()
    def decode(self, prompt: list[int], steps: int) -> tuple[list[int], float]:
        """Greedy tokens after a prompt, and the seconds per step after the first token."""
        out = self.model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        tokens, began = [int(out.logits[0, -1, :USABLE].argmax())], time.perf_counter()
        for _ in range(steps):
            out = self.model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
            tokens.append(int(out.logits[0, -1, :USABLE].argmax()))
        return tokens, (time.perf_counter() - began) / steps

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> None:
        self.model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> torch.Tensor:
        """pixels (n, 3, 384, 384) -> projected features (n, 729, D)."""
        out = self.model.get_image_features(torch.from_numpy(pixels))
        out = getattr(out, "pooler_output", out)
        return torch.stack(list(out)) if isinstance(out, list | tuple) else out

    @torch.inference_mode()
    def answer(self, prompt: str, photos: Sequence[Path], new_tokens: int) -> list[int]:
        """Greedy tokens of the port's chat format (spec 5.10), from the files on."""
        pixels = torch.from_numpy(self.processor([Image.open(p).convert("RGB") for p in photos]))
        text = f"<|im_start|>user\n{'<image>' * 729 * len(photos)}\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        ids = torch.tensor([self.tokenizer(text).input_ids])
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels,
            max_new_tokens=new_tokens, do_sample=False,
            suppress_tokens=list(range(USABLE, self.model.config.text_config.vocab_size)),
        )  # fmt: skip
        return out[0, ids.shape[1] :].tolist()
