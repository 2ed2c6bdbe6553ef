"""Picture -> model input: ours against Pillow's resize alone and the SigLIP image processor. python -m bench.preprocess

The limit is reading the picture once and writing the patches once, at the rate at which this machine copies memory,
measured in the same run. The resize itself is some 30 multiply-adds a byte, so small parts of that limit are expected.
"""

import argparse

import numpy as np
import torch
from PIL import Image

from bench import micro
from bench.harness import best_of, in_turns, median, report
from bench.transformers_peer import siglip_processor
from minilava_kernels import preprocess

VIEW, PATCH = 384, 14
SIZES = [(1920, 1080), (1080, 1920), (4032, 3024), (640, 480), (384, 384)]  # (w, h)


def photograph(w: int, h: int) -> Image.Image:
    """Smooth colour with noise on it."""
    rng = np.random.default_rng(w * 10007 + h)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    noise = rng.integers(-12, 13, (h, w, 3), np.int16)
    return Image.fromarray(np.clip(np.asarray(coarse, np.int16) + noise, 0, 255).astype(np.uint8))


def copy_rate() -> float:
    """Bytes read and written per second by a copy larger than the caches."""
    source = torch.zeros(1 << 26, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / best_of(lambda: target.copy_(source))


def rows(sizes: list[tuple[int, int]] = SIZES, repeats: int = 51) -> list[dict]:
    processor, rate, results = siglip_processor(), copy_rate(), []
    for w, h in sizes:
        image = photograph(w, h)
        pixels = np.asarray(image)
        patches = preprocess.resize_patchify(pixels, VIEW, PATCH)
        view = np.array(image.resize((VIEW, VIEW), Image.Resampling.BICUBIC))
        assert torch.equal(patches, preprocess.patchify(view[None], PATCH)), f"{w}x{h}: our pixels are not Pillow's"
        side = VIEW // PATCH * PATCH
        reference = torch.from_numpy(processor([image]))[:, :, :side, :side]
        unfolded = torch.nn.functional.unfold(reference, PATCH, stride=PATCH).transpose(1, 2)
        assert torch.equal(patches, unfolded), f"{w}x{h}: our floats are not the image processor's"
        times = in_turns(
            {
                "ours": lambda pixels=pixels: preprocess.resize_patchify(pixels, VIEW, PATCH),
                "one": lambda pixels=pixels: preprocess.resize_patchify(pixels, VIEW, PATCH, threads=1),
                "pillow": lambda image=image: image.resize((VIEW, VIEW), Image.Resampling.BICUBIC),
                "hf": lambda image=image: processor([image]),
            },
            repeats,
        )
        ms = {name: 1e3 * median(values) for name, values in times.items()}
        limit = 1e3 * (pixels.nbytes + patches.nbytes) / rate
        results.append(
            {
                "picture": f"{w}x{h}",
                "ours ms": ms["ours"],
                "1 thread ms": ms["one"],
                "Pillow resize ms": ms["pillow"],
                "HF processor ms": ms["hf"],
                "x Pillow": ms["pillow"] / ms["ours"],
                "x HF": ms["hf"] / ms["ours"],
                "% of limit": 100 * limit / ms["ours"],
            }
        )
    return results


def gpu_rows(batch: int = 32, repeats: int = 30) -> list[dict]:
    """Batches of pictures that are on the device already, against the CPU's result."""
    roof, results = micro.limits("cuda"), []
    for name, sizes in {**{f"{w}x{h}": [(w, h)] for w, h in SIZES}, "mixed": SIZES}.items():
        pictures = [np.asarray(photograph(*sizes[i % len(sizes)])) for i in range(batch)]
        on_device = [torch.from_numpy(p).cuda() for p in pictures]
        patches = preprocess.resize_patchify(on_device, VIEW, PATCH)
        assert torch.equal(patches.cpu(), preprocess.resize_patchify(pictures, VIEW, PATCH)), f"{name}: other bytes"
        calls = {"ours": lambda p=on_device: preprocess.resize_patchify(p, VIEW, PATCH)}
        seconds = median(micro.gpu_times(calls, repeats)["ours"])
        moved = sum(p.nbytes for p in pictures) + patches.nbytes
        results.append(
            {
                "picture": name,
                "batch": batch,
                "us": 1e6 * seconds,
                "pictures/s": batch / seconds,
                "target": ">= 10000" if name == "1920x1080" else "",
                "% of limit": 100 * moved / roof["bytes"] / seconds,
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    if parser.parse_args().device == "cuda":
        results = gpu_rows()
        return report("preprocess_gpu", results, list(results[0]))
    from minilava import _C

    results = rows()
    report("preprocess", results, list(results[0]), simd=_C.simd_level())


if __name__ == "__main__":
    main()
