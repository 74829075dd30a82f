"""How long each stage of the bootstrap runs, by machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """How much of everything. ``cpu`` is what two cores do in about three hours; ``cuda`` should
    fit half an hour of one data-centre GPU (planned, not yet measured)."""

    pool: int = 20_000
    dev_pool: int = 2_000
    autoencoder_steps: int = 1_900
    autoencoder_batch: int = 8
    decoder_steps: int = 3_000
    look_steps: int = 1_500
    base_steps: int = 4_000
    base_batch: int = 32
    profile_steps: int = 2_000
    profile_batch: int = 96  # pairs read in a step
    people: int = 2_000
    readings: int = 6
    dev_people: int = 300  # held out, three readings each: what adapter and gate are judged on
    directions: int = 8  # probe on dev people: cosine .41, .45, .45, .45 from 6, 8, 12, 16
    adapter_steps: int = 1_200
    adapter_batch: int = 24
    population_steps: int = 1_200
    gate_pairs: int = 1_024  # held-out choices that the gate's figure counts
    question_pictures: int = 320  # drawn to see how pictures answer to the embedding
    report_users: int = 200  # dev people of the report at the end


BUDGETS = {
    "cpu": Budget(),
    "tiny": Budget(
        pool=1_000, dev_pool=500, autoencoder_steps=40, decoder_steps=15, look_steps=120,
        base_steps=40, base_batch=16, profile_steps=120, people=200, readings=3, adapter_steps=15,
        adapter_batch=4, population_steps=5, gate_pairs=16, question_pictures=16, report_users=4,
    ),
    "cuda": Budget(
        pool=60_000, autoencoder_steps=8_000, autoencoder_batch=32, decoder_steps=8_000,
        look_steps=4_000, base_steps=20_000, base_batch=128, profile_steps=6_000, people=10_000,
        adapter_steps=4_000, adapter_batch=48, population_steps=4_000,
    ),
}  # fmt: skip
