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
_NODES = np.linspace(-6.5, 6.5, 49)
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
        if_known = _softplus(logits) - p * logits
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
        means, covariances = self.fit_each(np.reshape(differences, (1, -1, len(self.mean))))
        return Taste(means[0], covariances[0], float(self.certainty(covariances)[0]))

    def fit_each(self, differences: Array) -> tuple[Array, Array]:
        """Many people at once, ``[N, n, d]``: their means ``[N, d]`` and covariances ``[N, d, d]``.

        Who has chosen less often has zeros there: equal pictures say nothing.
        """
        differences = np.asarray(differences, np.float64)
        if not np.isfinite(differences).all():
            raise InvalidInput("a picture's features are not finite", field="pairs")
        # In v, w = μ + L v, the prior is N(0, 1): well scaled, and no inverse of Σ.
        v, spread = _nearest_gaussian(differences @ self.mean, differences @ self._root)
        return self.mean + v @ self._root.T, self._root @ spread @ self._root.T

    def certainty(self, covariances: Array) -> Array:
        """``Taste.certainty`` of each: ``[N, d, d]`` -> ``[N]``."""
        before, after = np.trace(self.covariance), np.trace(covariances, axis1=-2, axis2=-1)
        return np.clip(1 - after / before, 0, 1) if before > 0 else np.ones(len(after))

    def save(self, path: Path) -> None:
        save_file({n: np.ascontiguousarray(getattr(self, n), np.float64) for n in _TENSORS}, path)

    @classmethod
    def load(cls, path: Path) -> ChoiceModel:
        """Raises ReleaseError if the file holds no choice model."""
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ReleaseError(f"choice model: {error}") from error
        if missing := set(_TENSORS) - set(tensors):
            raise ReleaseError(f"choice model: no {', '.join(sorted(missing))}")
        projection, mean, covariance = (tensors[name] for name in _TENSORS)
        d = mean.size
        if (mean.shape, covariance.shape, projection.shape[1:]) != ((d,), (d, d), (d,)):
            raise ReleaseError("choice model: shapes do not fit together")
        if not all(np.isfinite(t).all() for t in (projection, mean, covariance)):
            raise ReleaseError("choice model: not finite")
        return cls(projection, mean, covariance)


def _nearest_gaussian(offset: Array, slopes: Array) -> tuple[Array, Array]:
    """The Gaussians nearest to N(v; 0, 1) · Π σ(offset + slopes·v), one for each of ``N`` people.

    ``[N, n]`` and ``[N, n, d]`` -> means ``[N, d]`` and covariances ``[N, d, d]``.

    Newton's method with every σ and its slope averaged over what v may be, which is also the
    natural gradient of the evidence bound; steps are halved until the bound rises. A mode with the
    curvature there (Laplace) is quicker but far too sure: with 8-32 choices a person, priors fitted
    by it were 3-5 times too narrow.
    """
    people, n, d = slopes.shape
    mean, weight = np.zeros((people, d)), np.zeros((people, n))
    spread = np.tile(np.eye(d), (people, 1, 1))
    logits, bound = _evidence(mean, spread, offset, slopes)
    size, rising = np.ones(people), np.arange(people)
    for _ in range(_MOST_STEPS):
        if not len(rising):
            break
        x, before, step = slopes[rising], bound[rising], size[rising, None]
        p = _sigmoid(logits[rising])
        gradient = mean[rising, :, None] - x.mT @ (1 - p @ _WEIGHTS)[..., None]
        new_weight = weight[rising] + step * ((p * (1 - p)) @ _WEIGHTS - weight[rising])
        new_spread = np.linalg.inv(np.eye(d) + (x * new_weight[..., None]).mT @ x)
        new_mean = mean[rising] - step * (new_spread @ gradient)[..., 0]
        new_logits, new_bound = _evidence(new_mean, new_spread, offset[rising], x)
        enough = 1e-8 * (1 - before)
        taken = (new_bound > before - enough) | (step[:, 0] < 1e-4)
        now = rising[taken]
        mean[now], weight[now], spread[now] = new_mean[taken], new_weight[taken], new_spread[taken]
        logits[now], bound[now] = new_logits[taken], new_bound[taken]
        size[rising] = np.where(taken, 1, size[rising] / 2)
        rising = rising[~taken | (new_bound >= before + enough)]
    return mean, spread


def _evidence(mean: Array, spread: Array, offset: Array, slopes: Array) -> tuple[Array, Array]:
    """Logits at the nodes ``[N, n, nodes]``; expected log-probability of the choices, less the
    divergence of N(mean, spread) from N(0, 1): ``[N]``."""
    variance = ((slopes @ spread) * slopes).sum(-1)
    logits = _at_nodes(offset + (slopes @ mean[..., None])[..., 0], variance)
    likely = -_softplus(-logits).sum(1) @ _WEIGHTS
    size = np.trace(spread, axis1=1, axis2=2) + (mean**2).sum(1) - mean.shape[1]
    return logits, likely - (size - np.linalg.slogdet(spread)[1]) / 2


def _at_nodes(mean: Array, variance: Array) -> Array:
    """Where N(mean, variance) ``[...]`` has its nodes: ``[..., nodes]``."""
    return mean[..., None] + np.sqrt(np.maximum(variance, 0))[..., None] * _NODES


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-np.maximum(x, -700)))


def _softplus(x: Array) -> Array:
    """log(1 + eˣ): half the time of ``logaddexp``, which is what a fit's time goes to."""
    return np.maximum(x, 0) + np.log(1 + np.exp(-np.abs(x)))


def _entropy(p: Array) -> Array:
    """Of a coin that falls so with probability p, in nats."""
    p = np.clip(p, 1e-300, 1 - 1e-16)
    return -p * np.log(p) - (1 - p) * np.log1p(-p)
