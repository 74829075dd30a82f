"""``ppd doctor``: what this machine has, and what would run well on it.

Nothing is believed that can be tried: a kernel counts as there when it has run on the device.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

GB = 1e9
PACKAGES = (
    "torch", "diffusers", "transformers", "accelerate", "bitsandbytes", "xformers", "flash-attn",
    "faiss-cpu", "ray", "fastapi", "sqlalchemy", "pydantic",
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """``memory_gb`` and ``free_gb`` in 10⁹ bytes; for the CPU that is main memory."""

    name: str  # "cpu", "cuda:0", "mps"
    model: str
    memory_gb: float
    free_gb: float


@dataclass(frozen=True)
class Finding:
    """Something that was tried on a device; ``why`` says why not, or how."""

    device: str
    name: str
    works: bool
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a model would run well. ``verdict``: "well", "in 4-bit", "slowly" or "no"."""

    model: str
    role: str  # "backbone" or "encoder"
    needs_gb: float
    verdict: str


@dataclass(frozen=True)
class Report:
    python: str
    versions: dict[str, str | None]  # None: not installed
    devices: list[Device]
    cpu_threads: int
    attention: list[Finding]
    quantisation: list[Finding]
    disk_free_gb: float
    advice: list[Verdict]


@dataclass(frozen=True)
class Model:
    """A model this server can use; ``billions`` of parameters of everything that is loaded."""

    name: str
    role: str
    billions: float

    def needs_gb(self, bytes_per_parameter: float) -> float:
        """Weights, a fifth for activations and fragments, and half a GB for the libraries."""
        return self.billions * bytes_per_parameter * 1.2 + 0.5


# Parameter counts are those of the published checkpoints, text encoders and decoders included.
MODELS = (
    Model("studio (the embedded default)", "both", 0.1),
    Model("Stable Diffusion 1.5", "backbone", 1.07),
    Model("SDXL", "backbone", 3.5),
    Model("Stable Cascade", "backbone", 5.9),
    Model("LLaVA-OneVision 0.5B", "encoder", 0.9),
    Model("SmolVLM", "encoder", 2.2),
    Model("LLaVA-OneVision 7B", "encoder", 8.0),
    Model("Qwen2.5-VL 7B", "encoder", 8.3),
)
SMALL_GB = 1.0  # what a CPU draws fast enough
HALF, FOUR_BIT = 2.0, 0.7  # bytes per parameter; 4-bit keeps embeddings and norms in 16


def report(data: Path | str = ".") -> Report:
    """Look at this machine. ``data``: where the server would keep its data (need not exist yet)."""
    devices = find_devices()
    quantisation = [try_four_bit(device.name) for device in devices]
    return Report(
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        devices=devices,
        cpu_threads=torch.get_num_threads(),
        attention=[finding for device in devices for finding in try_attention(device.name)],
        quantisation=quantisation,
        disk_free_gb=shutil.disk_usage(_existing(Path(data))).free / GB,
        advice=advise(devices, {f.device for f in quantisation if f.works}),
    )


def find_devices() -> list[Device]:
    """Every device torch can use here, fastest kind first; the CPU is always the last."""
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        model = torch.cuda.get_device_name(index)
        found.append(Device(f"cuda:{index}", model, total / GB, free / GB))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", pages, pages))  # shares main memory
    cores = os.cpu_count() or 1
    return [*found, Device("cpu", f"{platform.machine()}, {cores} cores", pages, _free_gb(pages))]


def try_attention(device: str) -> list[Finding]:
    """Run each attention kernel once on ``device``, in the type it would be served in."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    q = torch.ones(1, 2, 64, 64, device=device, dtype=dtype)

    def sdpa(backend: SDPBackend) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, q, q)

    def xformers() -> torch.Tensor:
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(q, q, q)  # type: ignore[no-any-return]

    def flash_attn() -> torch.Tensor:
        from flash_attn import flash_attn_func  # type: ignore[import-not-found]

        return flash_attn_func(q, q, q)  # type: ignore[no-any-return]

    kernels: dict[str, Callable[[], torch.Tensor]] = {
        "sdpa flash": lambda: sdpa(SDPBackend.FLASH_ATTENTION),
        "sdpa efficient": lambda: sdpa(SDPBackend.EFFICIENT_ATTENTION),
        "sdpa cudnn": lambda: sdpa(SDPBackend.CUDNN_ATTENTION),
        "sdpa math": lambda: sdpa(SDPBackend.MATH),
        "xformers": xformers,
        "flash-attn": flash_attn,
    }
    # Equal values attend to themselves: whatever the kernel, ones come out.
    return [_try(device, name, run, torch.ones_like(q), 1e-2) for name, run in kernels.items()]


def try_four_bit(device: str) -> Finding:
    """Run a 4-bit linear layer (the identity) on ``device`` and see whether it is one."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 64, generator=generator), torch.eye(64)  # 0 and 1 are exact in nf4

    def four_bit() -> torch.Tensor:
        from bitsandbytes.nn import Linear4bit, Params4bit

        layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4")
        layer = layer.to(device)
        with torch.inference_mode():
            return layer(x.to(device)).cpu()  # type: ignore[no-any-return]

    return _try(device, "4-bit (bitsandbytes)", four_bit, x, 1e-2)


def advise(devices: list[Device], four_bit: set[str]) -> list[Verdict]:
    """How each model would run on the best of these devices; from sizes, not from measurement.

    four_bit: names of the devices on which 4-bit layers work.
    """
    gpus = [device for device in devices if device.name != "cpu"]
    cpu = max((device.memory_gb for device in devices if device.name == "cpu"), default=0.0)
    roomiest = max((gpu.memory_gb for gpu in gpus), default=0.0)
    roomiest_four_bit = max((g.memory_gb for g in gpus if g.name in four_bit), default=0.0)
    verdicts = []
    for model in MODELS:
        needs = model.needs_gb(HALF)
        if needs <= roomiest or (needs <= SMALL_GB and needs <= cpu):
            verdict = "well"
        elif model.role == "encoder" and model.needs_gb(FOUR_BIT) <= roomiest_four_bit:
            verdict, needs = "in 4-bit", model.needs_gb(FOUR_BIT)
        elif needs <= cpu:
            verdict = "slowly"
        else:
            verdict = "no"
        verdicts.append(Verdict(model.name, model.role, needs, verdict))
    return verdicts


def render(report: Report, console: Console | None = None) -> None:
    """Print a report for people."""
    console = console or Console()

    software = Table("package", "version", title=f"Software (Python {report.python})")
    for name, version in report.versions.items():
        software.add_row(name, version or "[dim]not installed[/]")

    devices = Table("device", "model", "memory", "free", title="Devices")
    for device in report.devices:
        memory = f"{device.memory_gb:.1f} GB", f"{device.free_gb:.1f} GB"
        devices.add_row(device.name, device.model, *memory)

    kernels = Table("device", "kernel", "works", "", title="Attention and quantisation (tried)")
    for found in [*report.attention, *report.quantisation]:
        works = "[green]yes[/]" if found.works else "[dim]no[/]"
        kernels.add_row(found.device, found.name, works, Text(found.why, style="dim"))

    # Estimated, each model by itself.
    advice = Table("model", "role", "needs", "would run", title="Models (by their size)")
    for verdict in report.advice:
        needs = f"{verdict.needs_gb:.1f} GB"
        advice.add_row(verdict.model, verdict.role, needs, VERDICTS[verdict.verdict])

    for table in (software, devices, kernels, advice):
        console.print(table)
    console.print(f"CPU threads used by torch: {report.cpu_threads}")
    console.print(f"Free disk space: {report.disk_free_gb:.1f} GB")


VERDICTS = {
    "well": "[green]well[/]",
    "in 4-bit": "[green]in 4-bit[/]",
    "slowly": "[yellow]slowly, on the CPU[/]",
    "no": "[red]no: too large[/]",
}


def _try(
    device: str, name: str, run: Callable[[], torch.Tensor], right: torch.Tensor, tolerance: float
) -> Finding:
    try:
        with warnings.catch_warnings(action="ignore"):  # torch explains at length what it lacks
            worst = (run().float() - right.float()).abs().max().item()
    except Exception as error:  # whatever a kernel says, the doctor goes on to the next
        why = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        return Finding(device, name, False, why)
    if not worst <= tolerance:
        return Finding(device, name, False, f"wrong by {worst:.2g}")
    return Finding(device, name, True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _free_gb(otherwise: float) -> float:
    """Memory that could be had without swapping (Linux says), else ``otherwise``."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(li.split()[1]) * 1024 / GB for li in lines if li.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return otherwise
