"""python -m minilava.recipes.tiny: make the embedded model from nothing, through the paper's stages (make tiny).

Every stage can be interrupted and goes on where it stopped. The result replaces the checkpoint that the package ships.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from minilava.config import read_json
from minilava.data.mixture import load_mixture
from minilava.errors import command
from minilava.recipes.tiny.grow import grow
from minilava.runtime.vlm import TINY
from minilava.train.config import load_config
from minilava.train.log import read_log
from minilava.train.loop import train
from minilava.train.new import write_new

HERE = Path(__file__).parent
STAGES = ("pretrain", "projector", "single", "interleave", "harder", "reading", "practice", "deeper", "choices", "dpo")
VOCABULARY = 1020  # with the four special tokens 1024
KEPT_EVERY = 40  # steps: the log that ships with the model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to run")
    parser.add_argument("--install", action="store_true", help="put the result into the package")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting everywhere")
    args = parser.parse_args()
    stages = STAGES[: STAGES.index(args.until) + 1]
    model = Path(load_config(HERE / "pretrain.yaml").init)
    if not (model / "config.json").exists():
        write_new(model, read_json(HERE / "shape.json"), load_mixture(HERE / "vocabulary.yaml"), VOCABULARY)
    for stage in stages:
        print(f"stage {stage}", file=sys.stderr)
        config = load_config(HERE / f"{stage}.yaml", args.set)
        if stage == "deeper" and not (Path(config.init) / "model.safetensors").exists():
            grow(model, Path(config.init))
        model = train(config)
    print(model)
    if args.install:
        install(model, stages, TINY)


def install(model: Path, stages: tuple[str, ...], dst: Path) -> None:
    """Copy a checkpoint into the package, with the recipes and a thinned log of the stages that made it."""
    shutil.rmtree(dst, ignore_errors=True)
    shutil.copytree(model, dst)
    (dst / "training").mkdir()
    with open(dst / "training" / "log.jsonl", "w", encoding="utf-8") as log:
        log.write(json.dumps({"machine": machine()}) + "\n")
        for stage in stages:
            shutil.copyfile(HERE / f"{stage}.yaml", dst / "training" / f"{stage}.yaml")
            rows = read_log(Path(load_config(HERE / f"{stage}.yaml").out))
            for row in rows:
                if row["step"] % KEPT_EVERY == 0 or row is rows[-1]:
                    log.write(json.dumps({"stage": stage} | row) + "\n")


def machine() -> dict:
    """Where and with what the run was made."""
    cpu = Path("/proc/cpuinfo")
    names = [x.split(":")[1].strip() for x in cpu.read_text().splitlines() if "model name" in x] if cpu.exists() else []
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "commit": git.stdout.strip() or None,
    }


if __name__ == "__main__":
    sys.exit(command(main))
