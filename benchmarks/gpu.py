"""Production models in their full size on a GPU, with random weights: right, how fast, how large.

    python -m benchmarks.gpu --model sdxl --part pictures      one part of one model
    python -m benchmarks.gpu --size toy --device cpu           everything, in miniature

The models are made on the device in the shapes of the published checkpoints
(``gpu_parts/architectures.py``): what they draw is noise, what it costs is not. Each part of each
model is a run of at most 8 minutes on a large GPU and writes a section; all of them together are
``report.json`` and ``report.md`` beside the sections.

========= ======================================================================================
correct    users apart in a batch, and stock diffusers' picture, in bfloat16 against float32
pictures   s a picture alone and in batches, stock diffusers, users, who joins, memory
compiled   the same with compiled blocks
forwards   a denoiser's forward: eager, compiled, as a CUDA graph; kernels of attention
training   a step of PPD: LoRA and user branch
reading    a 7B VLM reads four pairs of a person, in bfloat16 and in 4 bits (of no model below)
========= ======================================================================================

On a machine that has torch and transformers alone and no network, carry the rest as wheels. Here,
for its Python and processor (a ``pip show`` there tells what is missing)::

    pip download --no-deps --only-binary=:all: --python-version 3.12 \\
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \\
        --platform manylinux2014_x86_64 --dest wheels -c constraints.txt \\
        diffusers safetensors accelerate peft pydantic pydantic-core pydantic-settings \\
        annotated-types typing-inspection python-dotenv psutil typer rich tensorboard \\
        bitsandbytes pillow requests urllib3 charset-normalizer certifi protobuf absl-py

and there, beside this repository::

    python3 -m pip install --no-index --no-deps --find-links wheels/ --target site wheels/*.whl
    PYTHONPATH=site:. python3 -m benchmarks.gpu --model sdxl --part pictures

Neither Ray nor FAISS is needed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu_parts.correctness import correctness
from benchmarks.gpu_parts.forwards import forwards
from benchmarks.gpu_parts.measure import matmul_peak
from benchmarks.gpu_parts.models import MODELS
from benchmarks.gpu_parts.pictures import pictures
from benchmarks.gpu_parts.reading import reading
from benchmarks.gpu_parts.subject import Subject
from benchmarks.gpu_parts.training import training_step
from benchmarks.report import Tables, about, merge, write

OUT = Path("runs/gpu")
Part = StrEnum("Part", ["correct", "pictures", "compiled", "forwards", "training", "reading"])
Size = StrEnum("Size", ["full", "toy"])
SHORT = 8  # steps, where pictures are only compared


def run(
    part: Part, model: str, size: Size, device: str, batches: list[int], repeats: int
) -> tuple[dict[str, Any], Tables]:
    """Where it ran, and the tables of one part."""
    peak = matmul_peak(device)
    where = {
        **about(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "size": str(size),
        "matmul peak, TFLOP/s": float(f"{peak:.4g}"),
    }
    if part is Part.reading:
        return where, reading(str(size), device, (1, 8), repeats)  # type: ignore[arg-type]
    chosen = MODELS[model]
    defaults = chosen.defaults(str(size))  # type: ignore[arg-type]
    width, height = defaults.sizes[0]
    where |= {"picture": f"{width}×{height}", "steps": defaults.steps}

    def made() -> Subject:
        return Subject.of(chosen, str(size), device)  # type: ignore[arg-type]

    few = [n for n in batches if n <= 8]
    parts: dict[Part, Callable[[], Tables]] = {
        Part.correct: lambda: correctness(made(), min(SHORT, defaults.steps)),
        Part.pictures: lambda: pictures(made(), batches, peak, repeats, compiled=False),
        Part.compiled: lambda: pictures(made(), batches, peak, repeats, compiled=True),
        Part.forwards: lambda: forwards(made(), batches, peak, repeats),
        Part.training: lambda: {
            **training_step(made(), few, repeats, checkpointing=False),
            **training_step(made(), few, repeats, checkpointing=True),
        },
    }
    return where, parts[part]()


def main(
    model: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(MODELS)}.")] = None,
    part: Annotated[list[Part] | None, typer.Option(help="All, unless given.")] = None,
    size: Size = Size.full,
    device: str = "cuda",
    batch: Annotated[list[int] | None, typer.Option(help="1, 2, 4, 8, 16 unless given.")] = None,
    repeats: int = 3,
    out: Path = OUT,
) -> None:
    for each in part or list(Part):
        for name in ["vlm"] if each is Part.reading else model or MODELS:
            where, tables = run(each, name, size, device, batch or [1, 2, 4, 8, 16], repeats)
            write(out / f"{name}-{each}.json", where, tables)
            gc.collect()
    merge(out)


if __name__ == "__main__":
    typer.run(main)
