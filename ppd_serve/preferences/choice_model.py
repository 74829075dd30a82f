"""A small Bayesian model of one person's choices: what they like, and how sure that is.

A picture is a vector φ of ``d`` features, a linear map of what the encoder's own image tower makes
of it. A taste is a direction w among them, drawn for every person from N(μ, Σ), and

    P(a chosen over b) = σ(w · (φ_a − φ_b))                            (Bradley and Terry, 1952)

The belief about w is the Gaussian nearest to the posterior (Opper and Archambeau 2009, *The
Variational Gaussian Approximation Revisited*). It fits in milliseconds, needs no axes with names,
and knows what the VLM's embedding cannot say: how much is still unknown, and which question would
tell most (Houlsby et al. 2011, arXiv 1112.5745).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ppd_serve.errors import InvalidInput, ReleaseError

Array = NDArray[np.floating]

# E f(z) over a standard normal z: the trapezoid rule, whose error vanishes exponentially for the
# smooth functions below.
_NODES = np.linspace(-6.5, 6.5, 65)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()
_MOST_STEPS = 200
_TENSORS = ("projection", "mean", "covariance")


@dataclass(frozen=True)
class Taste:
    """What is believed of one person: w ~ N(``mean`` [d], ``covariance`` [d, d]).

    ``certainty``: 0 before the first choice, towards 1 with many. It is the share of what makes
    people judge an ordinary pair differently (the prior variance of w·(φ_a − φ_b), features having
    unit variance over pairs) that the choices have explained: ``1 − tr(covariance) / tr(Σ)``.
    """

    mean: Array
    covariance: Array
    certainty: float

    def probability(self, difference: Array) -> Array:
        """P(a over b) given φ_a − φ_b, ``[..., d]`` -> ``[...]``; nearer to ½ the less is known."""
        return _sigmoid(self._logits(difference)) @ _WEIGHTS

    def information(self, differences: Array) -> Array:
        """Bits that the answer to each question is expected to tell: ``[..., d]`` -> ``[...]``.

        The mutual information of answer and taste: how unsure the answer is, less how unsure it
        would still be if the taste were known.
        """
        logits = self._logits(differences)
        p = _sigmoid(logits)
        if_known = np.logaddexp(0, logits) - p * logits
        return np.maximum(_entropy(p @ _WEIGHTS) - if_known @ _WEIGHTS, 0) / np.log(2)

    def _logits(self, difference: Array) -> Array:
        """The belief about w·difference at the nodes: ``[..., d]`` -> ``[..., nodes]``."""
        difference = np.asarray(difference, np.float64)
        variance = ((difference @ self.covariance) * difference).sum(-1)
        return _at_nodes(difference @ self.mean, variance)


@dataclass(frozen=True)
class ChoiceModel:
    """How people's tastes are spread, fitted on training users: w ~ N(``mean``, ``covariance``).

    ``projection`` ``[hidden, d]`` makes a picture's features of its states in the image tower.
    """

    projection: Array
    mean: Array
    covariance: Array

    def features(self, states: Array) -> Array:
        """The tower's states, a picture's tokens in one row: ``[..., hidden]`` -> ``[..., d]``."""
        return np.asarray(states, np.float64) @ self.projection

    @cached_property
    def prior(self) -> Taste:
        """Somebody who has not chosen yet."""
        return Taste(self.mean, self.covariance, 0.0)

    @cached_property
    def _root(self) -> Array:
        """L with L Lᵀ = Σ; also where people do not differ at all in some direction."""
        value, vector = np.linalg.eigh(self.covariance)
        return vector * np.sqrt(value.clip(0))

    def fit(self, differences: Array) -> Taste:
        """The taste behind choices, each φ(preferred) − φ(rejected): ``[n, d]``.

        Raises InvalidInput where a feature is not finite.
        """
        differences = np.asarray(differences, np.float64).reshape(-1, len(self.mean))
        if not np.isfinite(differences).all():
            raise InvalidInput("a picture's features are not finite", field="pairs")
        # In v, w = μ + L v, the prior is N(0, 1): well scaled, and no inverse of Σ.
        v, spread = _nearest_gaussian(differences @ self.mean, differences @ self._root)
        covariance = self._root @ spread @ self._root.T
        before, after = np.trace(self.covariance), np.trace(covariance)
        certainty = float(np.clip(1 - after / before, 0, 1)) if before > 0 else 1.0
        return Taste(self.mean + self._root @ v, covariance, certainty)

    def save(self, path: Path) -> None:
        save_file({n: np.ascontiguousarray(getattr(self, n), np.float64) for n in _TENSORS}, path)

    @classmethod
    def load(cls, path: Path) -> ChoiceModel:
        """Raises ReleaseError if the file holds no choice model."""
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ReleaseError(f"choice model: {error}") from error
        if set(tensors) != set(_TENSORS):
            raise ReleaseError(f"choice model: expected {', '.join(_TENSORS)}")
        projection, mean, covariance = (tensors[name] for name in _TENSORS)
        d = mean.size
        if (mean.shape, covariance.shape, projection.shape[1:]) != ((d,), (d, d), (d,)):
            raise ReleaseError("choice model: shapes do not fit together")
        if not all(np.isfinite(t).all() for t in (projection, mean, covariance)):
            raise ReleaseError("choice model: not finite")
        return cls(projection, mean, covariance)


def _nearest_gaussian(offset: Array, slopes: Array) -> tuple[Array, Array]:
    """The Gaussian nearest to N(v; 0, 1) · Π σ(offset + slopes·v): mean ``[d]``, covariance.

    Newton's method with every σ and its slope averaged over what v may be, which is also the
    natural gradient of the evidence bound; steps are halved until the bound rises. A mode with the
    curvature there (Laplace) is quicker but far too sure: with 8-32 choices a person, priors fitted
    by it were 3-5 times too narrow.
    """
    n, d = slopes.shape
    mean, weight, spread = np.zeros(d), np.zeros(n), np.eye(d)
    logits = _at_nodes(offset, (slopes**2).sum(1))
    bound = _log_likelihood(logits)
    for _ in range(_MOST_STEPS):
        p = _sigmoid(logits)
        gradient = mean - slopes.T @ (1 - p @ _WEIGHTS)
        wanted = (p * (1 - p)) @ _WEIGHTS
        before, size = bound, 1.0
        enough = 1e-10 * (1 - before)
        while True:
            new_weight = weight + size * (wanted - weight)
            new_spread = np.linalg.inv(np.eye(d) + (slopes.T * new_weight) @ slopes)
            new_mean = mean - size * new_spread @ gradient
            logits = _at_nodes(offset + slopes @ new_mean, ((slopes @ new_spread) * slopes).sum(1))
            bound = _log_likelihood(logits) - _divergence(new_mean, new_spread)
            if bound > before - enough or size < 1e-4:
                break
            size /= 2
        mean, weight, spread = new_mean, new_weight, new_spread
        if bound < before + enough:
            break
    return mean, spread


def _log_likelihood(logits: Array) -> float:
    """Expected log-probability of all the choices: ``[n, nodes]`` -> one number."""
    return -float(np.logaddexp(0, -logits).sum(0) @ _WEIGHTS)


def _divergence(mean: Array, covariance: Array) -> float:
    """KL(N(mean, covariance) ‖ N(0, 1))."""
    d = len(mean)
    return float(np.trace(covariance) + mean @ mean - d - np.linalg.slogdet(covariance)[1]) / 2


def _at_nodes(mean: Array, variance: Array) -> Array:
    """Where N(mean, variance) ``[...]`` has its nodes: ``[..., nodes]``."""
    return mean[..., None] + np.sqrt(np.maximum(variance, 0))[..., None] * _NODES


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def _entropy(p: Array) -> Array:
    """Of a coin that falls so with probability p, in nats."""
    p = np.clip(p, 1e-300, 1 - 1e-16)
    return -p * np.log(p) - (1 - p) * np.log1p(-p)
