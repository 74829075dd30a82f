"""The grid of a schedule: diffusers' own scheduler, and what a table of coefficients cannot say.

Timesteps and sigmas are the class's own, made from the backbone's scheduler config, so spacing,
offsets, Karras sigmas and each class's own last ᾱ (0, or the 2⁻²⁴ of Euler and DPM++) are copied
rather than rewritten.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ppd_serve.errors import ReleaseError

Config = Mapping[str, Any]


def grid_of(cls: Any, config: Config, steps: int, *, flow: bool = False, **form: Any) -> Any:
    """diffusers' scheduler ``cls`` of this config, with its timesteps set; ``form`` overrides.

    ReleaseError, by name, for a setting that makes a step non-linear or that nothing here knows.
    """
    name = cls.__name__
    if is_flow(config) and not flow:
        raise ReleaseError(f"{name}: flow prediction is not supported")
    grid = cls.from_config(config, **form)
    own = {
        key: grid.config[key]
        for key in inspect.signature(cls.__init__).parameters.keys() - {"self"}
    }
    refuse(name, own, "thresholding", "clip_sample")
    if str(own.get("variance_type")).startswith("learned"):
        raise ReleaseError(f"{name}: learned variance is not supported")
    if own.get("interpolation_type") == "log_linear":  # diffusers makes one sigma too many
        raise ReleaseError(f"{name}: interpolation_type log_linear is not supported")
    kind = own["prediction_type"]
    if not flow and kind not in ("epsilon", "v_prediction"):
        raise ReleaseError(f"{name}: prediction type {kind} is not supported")
    if kind == "epsilon" and (own["rescale_betas_zero_snr"] or grid.alphas_cumprod[-1] == 0):
        raise ReleaseError(f"{name}: epsilon says nothing at zero terminal SNR; use v_prediction")
    grid.set_timesteps(steps)
    return grid


def refuse(name: str, config: Config, *flags: str) -> None:
    for flag in flags:
        if config.get(flag):
            raise ReleaseError(f"{name}: {flag} is not supported")


def is_flow(config: Config) -> bool:
    name = str(config.get("_class_name", ""))
    return name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"
