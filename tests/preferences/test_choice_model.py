"""The belief is the best Gaussian there is, it knows what it does not know, and it says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ppd_serve.errors import InvalidInput, ReleaseError
from ppd_serve.preferences.choice_model import ChoiceModel, Taste

Array = NDArray[np.floating]
D = 5


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def some_model(seed: int = 0, d: int = D, spread: float = 2.0) -> ChoiceModel:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(d, d))
    covariance = spread * factor @ factor.T / d
    return ChoiceModel(rng.normal(size=(7, d)), 0.3 * rng.normal(size=d), covariance)


def people(model: ChoiceModel, count: int, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    return rng.multivariate_normal(model.mean, model.covariance, count)


def choices(taste: Array, count: int, rng: np.random.Generator) -> Array:
    """Features of preferred minus rejected, as this person chooses: ``[count, d]``."""
    shown = rng.normal(size=(count, len(taste)))
    first = rng.random(count) < sigmoid(shown @ taste)
    return np.where(first[:, None], shown, -shown)


def expected(f: Callable[[Array], Array], mean: Array, variance: Array) -> Array:
    """E f(z), z ~ N(mean, variance), by Gauss and Hermite's rule: not how the model does it."""
    nodes, weights = hermegauss(120)
    return f(mean[..., None] + np.sqrt(variance)[..., None] * nodes) @ weights / weights.sum()


@pytest.mark.parametrize("count", [1, 4, 40])
def test_no_gaussian_near_it_is_nearer_to_the_posterior(count: int) -> None:
    """The bound's two conditions (Opper and Archambeau 2009, eqs 8-9), expectations done apart."""
    model, rng = some_model(), np.random.default_rng(count)
    own = choices(people(model, 1)[0], count, rng)
    taste = model.fit(own)
    mean, variance = own @ taste.mean, np.einsum("nd,de,ne->n", own, taste.covariance, own)
    p = expected(sigmoid, mean, variance)
    slope = expected(lambda z: sigmoid(z) * (1 - sigmoid(z)), mean, variance)
    precision = np.linalg.inv(model.covariance)
    np.testing.assert_allclose(precision @ (taste.mean - model.mean), own.T @ (1 - p), atol=1e-3)
    np.testing.assert_allclose(
        np.linalg.inv(taste.covariance), precision + (own.T * slope) @ own, rtol=1e-3, atol=1e-3
    )


def test_close_to_the_exact_posterior_in_one_dimension() -> None:
    model = ChoiceModel(np.eye(1), np.array([0.2]), np.array([[4.0]]))
    own = np.array([[1.0], [0.5], [-0.8], [1.5]])
    w = np.linspace(-15, 15, 20001)
    log = -((w - 0.2) ** 2) / 8 + np.log(sigmoid(own * w)).sum(0)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    mean = weight @ w
    taste = model.fit(own)
    assert taste.mean[0] == pytest.approx(mean, abs=0.05)
    assert taste.covariance[0, 0] == pytest.approx(weight @ (w - mean) ** 2, rel=0.1)


def test_people_fitted_together_are_fitted_alone() -> None:
    """Whatever they chose, and however often: the rest of their rows is zero."""
    model, rng = some_model(), np.random.default_rng(11)
    together = np.zeros((5, 12, D))
    for person, count in enumerate((0, 1, 3, 7, 12)):
        together[person, :count] = choices(people(model, 1, person)[0], count, rng)
    together[4] *= 30
    means, covariances = model.fit_each(together)
    for person, count in enumerate((0, 1, 3, 7, 12)):
        alone = model.fit(together[person, :count])
        np.testing.assert_allclose(means[person], alone.mean, atol=1e-3)
        np.testing.assert_allclose(covariances[person], alone.covariance, atol=1e-3)
        assert model.certainty(covariances)[person] == pytest.approx(alone.certainty, abs=1e-3)


def test_nobody_is_known_before_the_first_choice() -> None:
    model = some_model()
    taste = model.fit(np.zeros((0, D)))
    np.testing.assert_allclose(taste.mean, model.mean, atol=1e-9)
    np.testing.assert_allclose(taste.covariance, model.covariance, atol=1e-9)
    assert taste.certainty == pytest.approx(0, abs=1e-9) == model.prior.certainty


def test_the_order_of_choices_does_not_matter_and_their_direction_does() -> None:
    model = some_model()
    even = ChoiceModel(model.projection, np.zeros(D), model.covariance)
    own = choices(people(model, 1)[0], 9, np.random.default_rng(2))
    one, other, opposite = even.fit(own), even.fit(own[::-1]), even.fit(-own)
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-6)
    np.testing.assert_allclose(one.mean, -opposite.mean, atol=1e-6)
    assert np.linalg.norm(one.mean) > 0.1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000), count=st.integers(0, 30),
    scale=st.sampled_from([0.0, 1e-8, 1.0, 50.0, 1e6]),
)  # fmt: skip
def test_any_choices_leave_a_belief_that_is_one(seed: int, count: int, scale: float) -> None:
    """Also twice the same pair, pairs of equal pictures, and contradictions."""
    rng = np.random.default_rng(seed)
    own = scale * rng.normal(size=(count, D))
    own[count // 2 :] = own[: count - count // 2] * rng.choice([-1, 1])
    model = some_model(seed)
    taste = model.fit(own)
    removed = np.linalg.eigvalsh(model.covariance - taste.covariance)
    assert removed.min() > -1e-8  # choices never make less sure
    assert np.linalg.eigvalsh(taste.covariance).min() > -1e-9
    assert 0 <= taste.certainty <= 1
    p = taste.probability(own)
    assert ((p >= 0) & (p <= 1 + 1e-12)).all()
    bits = taste.information(own)
    assert ((bits >= 0) & (bits <= 1 + 1e-9)).all()


def test_directions_in_which_people_agree_are_never_learned() -> None:
    agreed = ChoiceModel(np.eye(2), np.array([0.0, 1.0]), np.diag([4.0, 0.0]))
    taste = agreed.fit(np.array([[1.0, -3.0], [0.5, -2.0]]))
    assert taste.mean[1] == pytest.approx(1)
    assert taste.mean[0] > 0.3
    nobody_differs = ChoiceModel(np.eye(2), np.ones(2), np.zeros((2, 2)))
    assert nobody_differs.fit(np.ones((3, 2))).certainty == 1


def test_probability_averages_over_what_the_taste_may_be() -> None:
    taste = some_model(3).prior
    asked = np.random.default_rng(4).normal(size=(6, 2, D))
    drawn = np.random.default_rng(5).multivariate_normal(taste.mean, taste.covariance, 200_000)
    simulated = sigmoid(asked @ drawn.T).mean(-1)
    p = taste.probability(asked)
    assert p.shape == (6, 2)
    np.testing.assert_allclose(p, simulated, atol=4e-3)
    np.testing.assert_allclose(p + taste.probability(-asked), 1, atol=1e-12)


def test_information_is_what_an_answer_removes_from_the_entropy_of_the_taste() -> None:
    """In one dimension, against both posteriors on a grid."""
    taste = Taste(np.array([0.4]), np.array([[2.25]]), 0.0)
    w = np.linspace(-14, 14, 40001)
    belief = np.exp(-((w - 0.4) ** 2) / 4.5)
    belief /= belief.sum()

    def entropy(q: Array) -> float:
        q = q[q > 0]
        return float(-(q * np.log2(q)).sum())

    for asked in (0.2, 1.0, 3.0):
        likely = sigmoid(asked * w)
        chance = float(belief @ likely)
        after = chance * entropy(belief * likely / chance) + (1 - chance) * entropy(
            belief * (1 - likely) / (1 - chance)
        )
        assert taste.information(np.array([asked])) == pytest.approx(
            entropy(belief) - after, abs=1e-4
        )


def test_the_question_to_ask_is_one_whose_answer_is_open_and_matters() -> None:
    taste = Taste(np.array([5.0, 0.0]), np.diag([0.01, 4.0]), 0.5)
    same, known, unknown, faint = taste.information(np.array([[0, 0], [1, 0], [0, 1], [0, 0.1]]))
    assert same == pytest.approx(0, abs=1e-9)
    assert unknown > 10 * known
    assert unknown > 10 * faint > 0


def test_it_knows_how_much_it_knows() -> None:
    """Over people of its own prior: what certainty promises is what the estimates explain, and of
    answers foreseen with probability p a share p comes true."""
    model, rng = some_model(6, spread=4.0), np.random.default_rng(7)
    true = people(model, 600)
    for count in (4, 16):
        fitted = model.fit_each(np.stack([choices(w, count, rng) for w in true]))
        tastes = [Taste(*one, 0.0) for one in zip(*fitted, strict=True)]
        error = ((fitted[0] - true) ** 2).sum(1).mean()
        promised = model.certainty(fitted[1]).mean()
        assert 1 - error / np.trace(model.covariance) == pytest.approx(promised, abs=0.04)

        shown = rng.normal(size=(len(true), 20, D))
        foreseen = np.stack([t.probability(q) for t, q in zip(tastes, shown, strict=True)])
        came = rng.random(foreseen.shape) < sigmoid(np.einsum("nqd,nd->nq", shown, true))
        for low in np.arange(0, 1, 0.2):
            bin_ = (foreseen >= low) & (foreseen < low + 0.2)
            assert came[bin_].mean() == pytest.approx(foreseen[bin_].mean(), abs=0.03)


def test_more_choices_foresee_better() -> None:
    model, rng = some_model(8, spread=4.0), np.random.default_rng(9)
    true = people(model, 400)
    shown = rng.normal(size=(len(true), 50, D))
    right = np.einsum("nqd,nd->nq", shown, true) > 0
    accuracy = []
    for count in (0, 2, 8, 32):
        means, _ = model.fit_each(np.stack([choices(w, count, rng) for w in true]))
        accuracy.append(((np.einsum("nqd,nd->nq", shown, means) > 0) == right).mean())
    assert np.diff(accuracy).min() > 0.03
    assert accuracy[-1] > 0.8


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model = some_model()
    model.save(tmp_path / "choices.safetensors")
    loaded = ChoiceModel.load(tmp_path / "choices.safetensors")
    states = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    np.testing.assert_array_equal(loaded.features(states), model.features(states))
    own = model.features(states[1:]) - model.features(states[:1])
    np.testing.assert_array_equal(loaded.fit(own).covariance, model.fit(own).covariance)


@pytest.mark.parametrize(
    "tensors",
    [
        {"mean": np.zeros(2)},
        {"projection": np.zeros((4, 2)), "mean": np.zeros(2), "covariance": np.eye(3)},
        {"projection": np.zeros((4, 3)), "mean": np.zeros(2), "covariance": np.eye(2)},
        {"projection": np.zeros((4, 2)), "mean": np.zeros((1, 2)), "covariance": np.eye(2)},
        {"projection": np.zeros((4, 2)), "mean": np.full(2, np.nan), "covariance": np.eye(2)},
    ],
)
def test_a_file_that_is_no_choice_model_is_refused(
    tmp_path: Path, tensors: dict[str, Array]
) -> None:
    save_file(tensors, tmp_path / "choices.safetensors")
    with pytest.raises(ReleaseError, match="choice model"):
        ChoiceModel.load(tmp_path / "choices.safetensors")


def test_a_torn_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "choices.safetensors"
    with pytest.raises(ReleaseError, match="choice model"):
        ChoiceModel.load(path)
    some_model().save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ReleaseError, match="choice model"):
        ChoiceModel.load(path)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_picture_without_finite_features_is_refused(broken: float) -> None:
    own = np.ones((3, D))
    own[1, 2] = broken
    with pytest.raises(InvalidInput) as error:
        some_model().fit(own)
    assert error.value.field == "pairs"


def test_it_needs_no_torch() -> None:
    """A gateway without a GPU, or a notebook, can say how sure a taste is."""
    code = "import sys, ppd_serve.preferences.choice_model as m; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
