"""Fewer bits: which layers, how far off, and never under the same name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from ppd_serve.preferences.encoder import Encoder, Quantisation
from ppd_serve.preferences.quantisation import BLOCK, layers_kept
from ppd_serve.release import Release, load_release
from ppd_serve.settings import STUDIO, EncoderPart
from tests.tiny_encoder import random_choice
from tests.training.studio import small_pool
from tests.twins.encoders import VLMS, make_vlm
from training.data.pool import PairSampler
from training.data.rows import studio_choices
from training.data.users import people

functional = pytest.importorskip("bitsandbytes.functional")
KINDS = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}


@pytest.fixture(scope="module")
def studio() -> Release:
    return load_release(STUDIO)


def error_by_row(weight: torch.Tensor) -> float:
    """What NF4 leaves wrong of each row ``[out, in]``, in its own size; the mean."""
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    off = functional.dequantize_4bit(packed, state) - weight
    return float((off.norm(dim=1) / weight.norm(dim=1)).mean())


def test_rows_that_end_inside_a_block_lose_most() -> None:
    """Rows of a trained layer differ in size; here every second one is a fifth of its neighbour."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([1.0, 0.2]).repeat(64)[:, None]

    def error(width: int) -> float:
        return error_by_row(size * torch.randn(128, width, generator=generator))

    assert error(2 * BLOCK) < 0.1
    assert error(BLOCK // 2) > 0.25  # two rows to a block
    assert error(BLOCK + BLOCK // 2) > 1.3 * error(2 * BLOCK)


def test_the_rows_of_every_quantised_layer_are_whole_blocks(studio: Release) -> None:
    model = studio.load_encoder(quantisation="4bit").model
    quantised = {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    assert all(layer.in_features % BLOCK == 0 for layer in quantised.values())
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert linear - quantised.keys() == set(layers_kept(model)) & linear
    # 160 wide: its attention stays; 384 and 128 wide: these do not.
    assert "model.text_model.layers.0.self_attn.q_proj" not in quantised
    assert "model.text_model.layers.0.mlp.down_proj" in quantised
    assert any("vision_model" in name for name in quantised)
    assert type(model.lm_head) is torch.nn.Linear


@pytest.mark.parametrize(
    ("how", "dtype", "least"),
    [("4bit", "float32", 0.98), ("4bit", "bfloat16", 0.98), ("8bit", "float32", 0.999)],
)
def test_the_shipped_encoder_reads_alike_in_fewer_bits(
    studio: Release, how: Quantisation, dtype: str, least: float
) -> None:
    """Acceptance: on a CPU, every embedding's cosine to float32's. Measured on dev people: .9995
    and more in 4 bits, 1.0000 in 8."""
    drawn = PairSampler(pool := small_pool(48)).draw(people("dev", 8), 4, np.random.default_rng(0))
    choices = [choice.pair for choice in studio_choices(pool, *drawn, name="dev")]
    chosen = [choices[k : k + 4] for k in range(0, len(choices), 4)]
    full, low = studio.load_encoder(), studio.load_encoder(dtype=dtype, quantisation=how)
    assert any(type(m).__name__ == KINDS[how] for m in low.model.modules())
    for one, other in zip(full.embed_all(chosen), low.embed_all(chosen), strict=True):
        a, b = one.embedding.ravel(), other.embedding.ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > least
        assert not np.array_equal(a, b)


def test_every_precision_has_its_own_space(studio: Release) -> None:
    ways = [{}, {"dtype": "bfloat16"}, *({"quantisation": how} for how in get_args(Quantisation))]
    assert len({studio.load_encoder(**way).space for way in ways}) == len(ways)
    assert studio.load_encoder().space == studio.embedding_space


def test_settings_know_them_all() -> None:
    for how in get_args(Quantisation):
        assert EncoderPart(quantisation=how).quantisation == how


@pytest.mark.parametrize("name", VLMS)
def test_every_class_of_vlm_loads_in_four_bits(name: str, tmp_path: Path) -> None:
    directory = make_vlm(name, tmp_path, position="before_profile")
    full = Encoder.load(directory, unfitted=True)
    low = Encoder.load(directory, unfitted=True, quantisation="4bit")
    quantised = [m for m in low.model.modules() if type(m).__name__ == "Linear4bit"]
    assert quantised  # the 64 wide ones, of a twin that is mostly 32 wide
    choices = [random_choice(np.random.default_rng(0))]
    a, b = (encoder.read(choices)[0].ravel() for encoder in (full, low))
    assert np.isfinite(b).all() and a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.8
    assert full.space != low.space


def test_eight_bits_do_not_fill_the_log(studio: Release, caplog: pytest.LogCaptureFixture) -> None:
    encoder = studio.load_encoder(quantisation="8bit")
    with caplog.at_level(logging.WARNING):
        encoder.read([random_choice(np.random.default_rng(0))])
    assert not [r for r in caplog.records if r.name.startswith("bitsandbytes")]
