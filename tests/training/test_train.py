"""One step, written out again without any of the trainer's machinery; and that it learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from tests.training.planted import DIM, PROMPTS, planted_backbone, planted_choices
from training.improvement import improvement
from training.objectives import dpo_loss, kto_loss, rpo_loss, sft_loss
from training.policy import Conditioning, Policy, Weights
from training.recipes import NAMES, Objective, Recipe
from training.recipes import recipe as named_recipe
from training.stage import Stage
from training.train import PreferenceTraining

OBJECTIVES: tuple[Objective, ...] = ("sft", "dpo", "kto", "rpo")


def recipe(objective: Objective, conditioning: Conditioning, **changes: object) -> Recipe:
    betas = {"sft": 1.0, "dpo": 60.0, "kto": 60.0, "rpo": 30.0}
    return Recipe(
        **dict(
            objective=objective, conditioning=conditioning, beta=betas[objective], steps=40,
            batch=8, learning_rate=5e-3, warmup=3, liked_share=0.5, seed=3,
        ) | changes
    )  # fmt: skip


def training(how: Recipe, *, awake: bool = False) -> PreferenceTraining:
    """``awake``: with a branch that already does something, so that policy and base differ."""
    backbone = planted_backbone()
    choices = planted_choices(backbone)
    policy = Policy(
        backbone, weights=how.weights, conditioning=how.conditioning,
        embedding_shape=choices.embedding_shape, lora_rank=2, seed=1,
    )  # fmt: skip
    if awake:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            for name, parameter in named(policy).items():
                if "to_v_ip" in name or "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.2)
    return PreferenceTraining(how, choices, policy)


@pytest.mark.parametrize("conditioning", ["none", "user"])
def test_what_is_trained_is_float32_beside_a_halved_base(conditioning: Conditioning) -> None:
    """A step of AdamW at 1e-5 is lost on most weights in bf16."""
    backbone = planted_backbone()
    backbone.denoiser.to(torch.bfloat16)
    shape = planted_choices(planted_backbone()).embedding_shape
    policy = Policy(backbone, weights="adapter", conditioning=conditioning, embedding_shape=shape)
    assert {parameter.dtype for parameter in named(policy).values()} == {torch.float32}


def test_a_halved_base_is_noised_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 the first timesteps have no noise at all, and others that of some other step."""
    backbone, choices = planted_backbone(torch.bfloat16), planted_choices(planted_backbone())
    policy = Policy(
        backbone, weights="adapter", conditioning="user", embedding_shape=choices.embedding_shape
    )
    run = PreferenceTraining(recipe("dpo", "user"), choices, policy)
    samples = dataclasses.replace(run.samples(0, range(8)), t=torch.arange(8))
    shown: list[torch.Tensor] = []
    denoise, conditions = backbone.denoise, []

    def watched(x: torch.Tensor, t: torch.Tensor, text: dict[str, torch.Tensor]) -> torch.Tensor:
        shown.append(x)
        return denoise(x, t, text)

    project = policy.adapter.project  # type: ignore[union-attr]
    monkeypatch.setattr(backbone, "denoise", watched)
    monkeypatch.setattr(policy.adapter, "project", lambda e: conditions.append(e) or project(e))
    errors = run.conditioned_errors(samples)
    schedule = DDPMScheduler.from_config(backbone.scheduler_config)
    assert schedule.config.prediction_type == "v_prediction"
    z = choices.latent(samples.pictures.reshape(-1))
    noise, t = samples.noise.repeat_interleave(2, 0), samples.t.repeat_interleave(2, 0)
    for x in shown:
        assert x.dtype == torch.bfloat16
        assert torch.equal(x, schedule.add_noise(z, noise, t).bfloat16())
    assert torch.equal(conditions[0], samples.embedding.repeat_interleave(2, 0))
    text = {k: v.repeat_interleave(2, 0) for k, v in choices.states(samples.prompt).items()}
    with torch.no_grad(), policy.reference():
        off = denoise(shown[1], t, text).float() - schedule.get_velocity(z, noise, t)
    assert torch.equal(errors.r, off.square().flatten(1).mean(1).view(-1, 2))


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_where_more_than_the_branch_learns_users_are_dropped(weights: Weights) -> None:
    """So that nobody stays nobody to it."""
    assert named_recipe("studio-ppd", weights=weights).dropped_users == 0.1
    assert named_recipe("studio-dpo", weights=weights).dropped_users == 0
    assert named_recipe("pickapic-sdxl-dpo", None, "user").dropped_users == 0  # the branch alone
    run = training(recipe("dpo", "user", weights=weights, dropped_users=0.3))
    embedding = run.samples(0, range(200)).embedding
    dropped = (embedding == 0).flatten(1).all(1)
    assert 0.2 < dropped.float().mean() < 0.4
    kept = training(recipe("dpo", "user", weights=weights)).samples(0, range(200)).embedding
    assert torch.equal(embedding[~dropped], kept[~dropped])
    assert not (kept == 0).flatten(1).all(1).any()


def named(policy: Policy) -> dict[str, torch.nn.Parameter]:
    return {
        f"{part}.{name}": parameter
        for part, module in policy.modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def gradients(of: PreferenceTraining, step: int = 0) -> dict[str, torch.Tensor]:
    for loss, _ in of.parts(step):
        loss.backward()
    return {n: p.grad.clone() for n, p in named(of.policy).items() if p.grad is not None}


def stage(of: PreferenceTraining, directory: Path) -> Stage:
    how = of.recipe
    return Stage(
        name=how.name, directory=directory, modules=of.policy.modules, loss=of.parts,
        steps=how.steps, learning_rate=how.learning_rate, warmup=how.warmup, ema_decay=0.9,
    )  # fmt: skip


@pytest.mark.parametrize("conditioning", ["none", "user"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_is_the_objective_of_its_samples(
    objective: Objective, conditioning: Conditioning
) -> None:
    run = training(recipe(objective, conditioning), awake=True)
    found = gradients(run)
    samples, choices, policy = run.samples(0, range(8)), run.choices, run.policy
    for parameter in named(policy).values():
        parameter.grad = None

    schedule = DDPMScheduler.from_config(policy.backbone.scheduler_config)
    places = samples.pictures.shape[1]
    assert places == (2 if objective in ("dpo", "rpo") else 1)
    m, r = [], []
    for i in range(8):
        for place in range(places):
            z = torch.from_numpy(choices.latents[samples.pictures[i, place]])[None].double()
            noise, t = samples.noise[i : i + 1].double(), samples.t[i : i + 1]
            noisy = schedule.add_noise(z, noise, t)
            target = (
                schedule.get_velocity(z, noise, t)
                if schedule.config.prediction_type == "v_prediction"
                else noise
            )
            text = policy.backbone.encode(PROMPTS[samples.prompt[i]])["states"]
            unet = policy.backbone.denoiser
            with policy.policy(samples.embedding[i : i + 1].double()):
                m.append((unet(noisy, t, text).sample - target).square().mean())
            with torch.no_grad(), policy.reference():
                r.append((unet(noisy, t, text).sample - target).square().mean())
    errors = [torch.stack(x).view(8, places) for x in (m, r)]
    how = run.recipe
    if objective == "sft":
        loss = sft_loss(errors[0][:, 0])
    elif objective == "kto":
        loss = kto_loss(errors[0][:, 0], errors[1][:, 0], samples.liked, beta=how.beta)
    elif objective == "dpo":
        loss = dpo_loss(*errors[0].T, *errors[1].T, beta=how.beta)
    else:
        distance = choices.distance(samples.pair).double()
        loss = rpo_loss(*errors[0].T, *errors[1].T, distance, beta=how.beta, tau=how.tau)
    loss.value.backward()
    assert any(g.abs().max() > 1e-6 for g in found.values())
    for name, gradient in found.items():
        expected = named(policy)[name].grad
        assert expected is not None
        torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_size_of_a_forward_changes_nothing(objective: Objective) -> None:
    whole = gradients(training(recipe(objective, "user"), awake=True))
    parted = gradients(training(recipe(objective, "user", micro_batch=2), awake=True))
    for name in whole:
        torch.testing.assert_close(whole[name], parted[name], atol=1e-10, rtol=1e-8)


def test_a_pairs_weight_is_a_factor_on_its_beta() -> None:
    def weighed(weight: np.ndarray, beta: float) -> dict[str, torch.Tensor]:
        run = training(recipe("dpo", "user", beta=beta), awake=True)
        run.choices = dataclasses.replace(run.choices, weight=weight.astype(np.float32))
        return gradients(run)

    plain = training(recipe("dpo", "user"), awake=True).samples(0, range(8)).pair
    heavy = np.zeros(400)
    heavy[plain[:4]] = 2.0  # the others of the step teach nothing
    found = weighed(heavy, 60.0)
    alone = training(recipe("dpo", "user", beta=120.0), awake=True)
    samples = alone.samples(0, range(8))[slice(4)]
    with alone.conditioned(samples):
        alone.objective(alone.errors(samples), samples).value.mul(0.5).backward()
    for name, parameter in named(alone.policy).items():
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-10, rtol=1e-8)
    assert any(g.abs().max() > 1e-6 for g in found.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nor_does_it_in_what_is_measured(objective: Objective) -> None:
    whole, parted = (
        training(recipe(objective, "user", micro_batch=size), awake=True) for size in (None, 2)
    )
    sizes: list[int] = []
    parted.policy.backbone.denoiser.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    found, expected = improvement(parted, 2), improvement(whole, 2)
    np.testing.assert_allclose(found.gain, expected.gain, atol=1e-10)
    assert max(sizes) == (4 if objective in ("dpo", "rpo") else 2)  # pictures of two samples


@pytest.mark.parametrize("conditioning", ["none", "user"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_improves_on_the_base(
    objective: Objective, conditioning: Conditioning, tmp_path: Path
) -> None:
    run = training(recipe(objective, conditioning, steps=60))
    # A new adapter is the base.
    np.testing.assert_allclose(improvement(run, 10).gain, 0, atol=1e-9)
    assert stage(run, tmp_path).run()
    fresh = planted_choices(planted_backbone(), seed=1, people=160, pairs=1600)
    unseen = PreferenceTraining(run.recipe, fresh, run.policy)
    low = improvement(unseen, 20).interval()["low"]
    assert low is not None and low > 0


@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("conditioning", ["none", "user"])
def test_the_reference_stays_the_base(weights: Weights, conditioning: Conditioning) -> None:
    run = training(recipe("dpo", conditioning, weights=weights))
    policy, denoiser = run.policy, run.policy.backbone.denoiser
    assert ("adapter" in policy.modules) == (conditioning == "user")
    x, t = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.tensor([10, 900])
    text = torch.from_numpy(run.choices.text["states"][:2]).double()

    def predicted() -> torch.Tensor:
        with torch.no_grad():
            return policy.backbone.denoise(x, t, {"states": text})

    with policy.reference():
        before = predicted()
    optimizer = torch.optim.SGD(named(policy).values(), 1.0)
    for step in range(3):
        for loss, _ in run.parts(step):
            loss.backward()
        optimizer.step()
    with policy.reference():
        assert torch.equal(predicted(), before)
    assert policy.backbone.denoiser is denoiser
    with policy.policy(torch.ones(2, 1, DIM, dtype=torch.float64)):
        assert not torch.allclose(predicted(), before)


def test_a_dropped_user_on_a_frozen_backbone_has_gradient_exactly_zero() -> None:
    run = training(recipe("dpo", "user"), awake=True)
    run.choices.readings[:] = 0
    found = gradients(run)
    assert found and not any(g.any() for g in found.values())


def test_checkpointed_gradients_are_the_same() -> None:
    plain = gradients(training(recipe("dpo", "user"), awake=True))
    saving = training(recipe("dpo", "user"), awake=True)
    saving.policy.backbone.denoiser.train()
    saving.policy.backbone.denoiser.enable_gradient_checkpointing()
    for name, gradient in gradients(saving).items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-12, rtol=1e-9)


def test_samples_depend_on_seed_step_and_index_alone() -> None:
    run = training(recipe("kto", "user", empty_prompts=0.5, embedding_noise=0.3))
    whole, part = run.samples(7, range(8)), run.samples(7, range(3, 5))
    assert np.array_equal(whole.pictures[3:5], part.pictures)
    assert np.array_equal(whole.prompt[3:5], part.prompt)
    for name in ("t", "noise", "embedding", "liked"):
        assert torch.equal(getattr(whole, name)[3:5], getattr(part, name))
    assert (
        len(set(run.samples(7, range(8)).t.tolist()) | set(run.samples(8, range(8)).t.tolist()))
        > 10
    )


def test_an_epoch_shows_every_pair_once() -> None:
    run = training(recipe("dpo", "user", batch=40))
    seen = np.concatenate([run.samples(step, range(40)).pair for step in range(10)])
    assert sorted(seen) == list(range(len(run.choices)))


def test_nobody_learns_a_choice_by_having_read_it() -> None:
    choices = planted_choices(planted_backbone())
    own = np.flatnonzero(choices.reading_user == choices.user[0])
    choices.read_in[0] = own[1]
    rng = np.random.default_rng(0)
    seen = np.stack([choices.embedding(choices.readings_for_pair(0), rng) for _ in range(60)])
    assert not (seen == choices.readings[own[1]]).all((1, 2)).any()
    assert {tuple(e[0]) for e in seen} == {tuple(choices.readings[k, 0]) for k in (own[0], own[2])}


def test_a_pair_that_counts_against_its_winner_protects_the_picture_that_it_teaches() -> None:
    """SmPO's scorer may side with the rejected picture; SDPO's λ then belongs to the preferred."""
    run = training(recipe("dpo", "user", batch=8, sdpo_mu=0.9), awake=True)
    swapped = dataclasses.replace(
        run.choices, preferred=run.choices.rejected, rejected=run.choices.preferred,
        weight=np.full(len(run.choices), 3, np.float32),
    )  # fmt: skip
    against = dataclasses.replace(run.choices, weight=np.full(len(run.choices), -3, np.float32))
    found = []
    for choices in (swapped, against):
        other = PreferenceTraining(run.recipe, choices, run.policy)
        ((loss, metrics),) = other.parts(3)
        parameters = list(named(run.policy).values())
        gradients = torch.autograd.grad(loss, parameters)
        found.append((float(loss.detach()), metrics, gradients))
    (loss, metrics, gradients), (same_loss, same_metrics, same) = found
    assert loss == same_loss and metrics == same_metrics
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert any(g.abs().max() > 0 for g in gradients)


def test_a_choice_set_survives_the_disk(tmp_path: Path) -> None:
    choices = planted_choices(planted_backbone())
    choices.save(tmp_path)
    loaded = type(choices).load(tmp_path)
    pairs = np.array([4, 9])
    assert torch.equal(choices.distance(pairs), loaded.distance(pairs))
    assert torch.equal(
        choices.latent(choices.preferred[pairs]), loaded.latent(loaded.preferred[pairs])
    )
    for a, b in zip(
        choices.states(np.array([0, -1])).values(),
        loaded.states(np.array([0, -1])).values(),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert loaded.known is None and loaded.users == choices.users


def test_every_recipe_is_whole() -> None:
    for name in NAMES:
        made = named_recipe(name)
        assert made.conditioning == ("user" if name.endswith("ppd") else "none"), name
        assert name.startswith("studio") or made.bf16
        assert (made.sdpo_mu is not None) == name.endswith("sdpo")
        assert named_recipe(name, "kto", "user").name == "kto-user"
    assert named_recipe("pickapic-sd15-dpo").beta == 5000
    assert named_recipe("pickapic-sdxl-ppd").weights == "adapter"
    own, lora = (named_recipe("pickapic-sdxl-kto", weights=weights) for weights in ("full", "lora"))
    assert (own.learning_rate, own.optimizer) == (1e-7, "adafactor")  # the rate of other weights
    assert (lora.learning_rate, lora.optimizer) == (1e-4, "adamw")
    assert named_recipe("studio-dpo", weights="full").learning_rate == 1e-5
    assert named_recipe("studio-dpo", weights="lora", learning_rate=0.5).learning_rate == 0.5
    with pytest.raises(KeyError, match="studio-ppd"):
        named_recipe("studio")
    with pytest.raises(ValueError, match="dropped_users"):
        named_recipe("studio-ppd", dropped_users=0.1)
    with pytest.raises(ValueError, match="known_until"):
        named_recipe("studio-ppd", known_until=(0.5, 0.5))
