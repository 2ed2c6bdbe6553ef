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
    """LlavaForConditionalGeneration from a checkpoint in the Hugging Face dialect."""

    def __init__(self, path: Path, device: str = "cpu", dtype: torch.dtype = torch.float32):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        began = time.perf_counter()
        self.model = transformers.LlavaForConditionalGeneration.from_pretrained(path, dtype=dtype).eval()
        self.model = self.model.to(device)
        self.device, self.dtype = device, dtype
        self.processor = siglip_processor()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self.load_s = time.perf_counter() - began
        self.version = transformers.__version__

    @torch.inference_mode()
    def decode(self, prompt: list[int], steps: int) -> tuple[list[int], float]:
        """Greedy tokens after a prompt, and the seconds per step after the first token."""
        tokens, seconds = self.decode_batch([prompt], steps)
        return tokens[0], seconds

    @torch.inference_mode()
    def decode_batch(self, prompts: list[list[int]], steps: int) -> tuple[list[list[int]], float]:
        """decode() for prompts of one length, so that the peer needs no padding."""
        ids = torch.tensor(prompts, device=self.device)
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        tokens = [out.logits[:, -1, :USABLE].argmax(-1)]
        self.wait()
        began = time.perf_counter()
        for _ in range(steps):
            out = self.model(tokens[-1][:, None], past_key_values=out.past_key_values, use_cache=True)
            tokens.append(out.logits[:, -1, :USABLE].argmax(-1))
        self.wait()
        return torch.stack(tokens, 1).tolist(), (time.perf_counter() - began) / steps

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> None:
        self.model(torch.tensor([prompt], device=self.device), use_cache=True, logits_to_keep=1)
        self.wait()

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> torch.Tensor:
        """pixels (n, 3, 384, 384) -> projected features (n, 729, D)."""
        out = self.model.get_image_features(torch.from_numpy(pixels).to(self.device, self.dtype))
        out = getattr(out, "pooler_output", out)
        return torch.stack(list(out)) if isinstance(out, list | tuple) else out

    @torch.inference_mode()
    def first_token(self, ids: list[int], pixels: np.ndarray) -> torch.Tensor:
        """The last logits, float32 (V,), of a prompt whose image tokens stand for these pixels; waits for them."""
        given = torch.from_numpy(pixels).to(self.device, self.dtype)
        ids = torch.tensor([ids], device=self.device)
        out = self.model(ids, pixel_values=given, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].float().cpu()

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
