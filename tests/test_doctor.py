"""The doctor tries things on this machine, and its advice follows from what it found."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ppd_serve import doctor
from ppd_serve.doctor import Device


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return doctor.report()


def test_it_finds_this_machine(report: doctor.Report, tmp_path: Path):
    assert report.versions["torch"] == torch.__version__
    cpu = report.devices[-1]
    assert cpu.name == "cpu" and 0 < cpu.free_gb <= cpu.memory_gb
    assert len(report.devices) >= 1 + torch.cuda.device_count()
    assert doctor.report(tmp_path / "not" / "yet").disk_free_gb > 0


def test_a_kernel_counts_when_it_has_run(report: doctor.Report):
    works = {(found.device, found.name): found for found in report.attention}
    assert works["cpu", "sdpa math"].works  # torch's own, everywhere
    assert all(found.works or found.why for found in report.attention + report.quantisation)
    if report.versions["flash-attn"] is None:
        assert not works["cpu", "flash-attn"].works


def test_a_kernel_that_fails_or_is_wrong_does_not_count():
    right = torch.ones(2)

    def broken() -> torch.Tensor:
        raise RuntimeError("no such kernel. And then some\nmore")

    assert doctor._try("cpu", "k", lambda: right + 1e-4, right, 1e-2).works
    assert doctor._try("cpu", "k", lambda: right + 1, right, 1e-2).why == "wrong by 1"
    assert not doctor._try("cpu", "k", lambda: right * torch.nan, right, 1e-2).works
    assert doctor._try("cpu", "k", broken, right, 1e-2).why == "no such kernel"


@pytest.mark.parametrize(
    "gpu_gb, four_bit, verdicts",
    [
        (None, False, {"studio": "well", "SDXL": "slowly", "Qwen2.5-VL 7B": "no"}),
        (10.0, False, {"SDXL": "well", "Stable Cascade": "slowly", "Qwen2.5-VL 7B": "no"}),
        (10.0, True, {"SDXL": "well", "Stable Cascade": "slowly", "Qwen2.5-VL 7B": "in 4-bit"}),
        (140.0, True, {"SDXL": "well", "Stable Cascade": "well", "Qwen2.5-VL 7B": "well"}),
    ],
)
def test_advice_follows_from_memory(gpu_gb: float | None, four_bit: bool, verdicts: dict[str, str]):
    devices = [Device("cpu", "a CPU", 16.0, 12.0)]
    if gpu_gb is not None:
        devices.insert(0, Device("cuda:0", "a GPU", gpu_gb, gpu_gb))
    advice = doctor.advise(devices, {"cuda:0", "cpu"} if four_bit else set())
    for name, verdict in verdicts.items():
        (found,) = [a for a in advice if a.model.startswith(name)]
        assert found.verdict == verdict, found


def test_it_can_be_read(report: doctor.Report):
    out = io.StringIO()
    doctor.render(report, Console(file=out, width=140))
    text = out.getvalue()
    for word in ("torch", "cpu", "sdpa math", "4-bit", "Stable Cascade", "Free disk space"):
        assert word in text


def test_error_texts_of_libraries_are_not_taken_for_markup(report: doctor.Report):
    finding = doctor.Finding("cpu", "k", False, "expected [/bold] or [1, 2]")
    changed = doctor.Report(**{**report.__dict__, "attention": [finding]})
    out = io.StringIO()
    doctor.render(changed, Console(file=out, width=140))
    assert "expected [/bold] or [1, 2]" in out.getvalue()
