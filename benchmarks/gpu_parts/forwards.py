"""What a denoiser's forward costs: by kernel of attention, eager, compiled, as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from benchmarks.gpu_parts.measure import milliseconds, tflop
from benchmarks.gpu_parts.subject import Subject
from benchmarks.report import Figure
from ppd_serve.diffusion.attention import use_attention_backend
from ppd_serve.errors import ReleaseError

Table = dict[str, Figure | float]
KERNELS = (
    "native", "_native_flash", "_native_efficient", "_native_cudnn", "_native_math", "flash",
    "_flash_3", "sage", "xformers",
)  # fmt: skip


def forwards(
    subject: Subject, batches: Sequence[int], peak: float, repeats: int
) -> dict[str, Table]:
    """Nobody's forwards, guided: two parts a picture."""
    device = subject.device
    work = tflop(_forward(subject, 1))
    how: dict[str, Callable[[int], Callable[[], object]]] = {
        "eager": lambda parts: _forward(subject, parts)
    }
    if device.startswith("cuda"):
        how["CUDA graph"] = lambda parts: _graph(subject, parts)
    tables = {
        f"a forward, {name}": _table(run, batches, work, peak, device, repeats)
        for name, run in how.items()
    }
    tables["a forward by attention kernel"] = _kernels(subject, 2 * max(batches), repeats)
    subject.compile()
    tables["a forward, compiled"] = _table(how["eager"], batches, work, peak, device, repeats)
    return tables


def _table(
    run: Callable[[int], Callable[[], object]], batches: Sequence[int], work: float, peak: float,
    device: str, repeats: int,
) -> Table:  # fmt: skip
    found: Table = {"TFLOP of a part": work}
    for count in batches:
        ms = milliseconds(run(2 * count), device, repeats)
        found[f"{count} guided: ms"] = ms
        found[f"{count} guided: share of the matmul peak"] = 2 * count * work / ms * 1e3 / peak
    return found


def _forward(subject: Subject, parts: int) -> Callable[[], object]:
    x, t, text = subject.inputs(parts)

    @torch.inference_mode()
    def run() -> object:
        return subject.backbone.denoise(x, t, text)

    return run


def _graph(subject: Subject, parts: int) -> Callable[[], object]:
    """What is left when the CPU has nothing to say in a step."""
    run = _forward(subject, parts)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what is chosen or allocated once must be there before
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _kernels(subject: Subject, parts: int, repeats: int) -> Table:
    """Those that run here; each is tried once before it is measured."""
    found: Table = {}
    denoiser = subject.backbone.denoiser
    for kernel in KERNELS:
        try:
            use_attention_backend(denoiser, kernel)  # type: ignore[arg-type]
            run = _forward(subject, parts)
            found[f"{kernel}: ms, {parts // 2} guided"] = milliseconds(run, subject.device, repeats)
        except (ReleaseError, RuntimeError, ValueError, ImportError, TypeError) as error:
            print(f"attention kernel {kernel}: {str(error).splitlines()[0]}")
    for attention in denoiser.modules():
        if isinstance(attention, Attention):
            attention.set_processor(AttnProcessor2_0())
    return found
