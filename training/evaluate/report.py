"""The report as a page, as a file, and as pictures one can look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from training.contact_sheet import Row, grid, stack
from training.data.world import CAPTIONS
from training.evaluate.studio import Outcome, Panel
from training.taste_words import in_words

_PARTS = ("subject", "setting", "size")
_WISHES = 2  # of a user, beside their pictures


def markdown(report: dict[str, Any]) -> str:
    """The report as a page; figures that were not taken are left out."""
    lines = [
        f"# {report['release']['name']} {report['release']['version']}",
        "",
        f"World `{report['world']}`, split `{report['split']}`, {report['users']} users, one "
        "comparison per user against the base at the same prompt and seed. Percentages with 95 % "
        "Wilson intervals; gain in standard deviations of the base's reward.",
        "",
        "| condition | n | win rate % | gain | subject % | setting % | size % |",
        "|---|---|---|---|---|---|---|",
        *_conditions(report),
        "",
        *(
            f"- personal minus {control}: {_points(found)}"
            for control, found in report["personal_minus"].items()
        ),
        f"- personal beats mismatched in {_rate(report['personal_beats_mismatched'])} %",
    ]
    if report["diversity_kept"] is not None:
        lines.append(
            "- diversity kept on axes the user does not care about: "
            f"{100 * report['diversity_kept']:.0f} %"
        )
    if "share_of_true_taste_gain" in report:
        lines.append(
            f"- share of the true-taste gain: {100 * report['share_of_true_taste_gain']:.0f} %"
        )
    for name, tell in _TOLD.items():
        if name in report:
            lines.append(tell(report[name]))
    return "\n".join(lines) + "\n"


def scales_table(found: dict[str, dict[str, Any]]) -> str:
    """What ``sweep_scales`` found, a line per preference scale."""
    lines = ["| scale | wins % | gain | content, points |", "|---|---|---|---|"]
    lines += [
        f"| {scale} | {_rate(row['win_rate'])} | {row['gain_in_base_spreads']['mean']:.2f} | "
        f"{_points(row['content']['mean']['difference'])} |"
        for scale, row in found.items()
    ]
    return "\n".join(lines)


def _conditions(report: dict[str, Any]) -> list[str]:
    base = report["base_content"]
    parts = " | ".join(_rate(base[p]) for p in _PARTS)
    lines = [f"| base | {base['subject']['count']} | – | – | {parts} |"]
    for name, row in report["conditions"].items():
        gain = row["gain_in_base_spreads"]
        parts = " | ".join(
            f"{100 * row['content'][part]['right']['value']:.1f} "
            f"({100 * row['content'][part]['minus_base']:+.1f})"
            for part in _PARTS
        )
        lines.append(
            f"| {name} | {row['win_rate']['count']} | {_rate(row['win_rate'])} | "
            f"{gain['mean']:.2f} ({gain['low']:.2f}–{gain['high']:.2f}) | {parts} |"
        )
    return lines


def _adherence(found: dict[str, Any]) -> str:
    told = ", ".join(f"{part} {_points(found[part]['difference'])}" for part in (*_PARTS, "mean"))
    return f"- adherence, personal minus base on the same prompts and seeds: {told}"


def _identification(found: dict[str, Any]) -> str:
    told = ", ".join(
        f"top {k} {_rate(rate)} % (chance {100 * found['chance'][k]:.1f})"
        for k, rate in found["top"].items()
    )
    return f"- users found again by another four of their pairs, of {found['users']}: {told}"


def _artefacts(found: dict[str, Any]) -> str:
    added = found["personal_minus_base"]
    return (
        f"- artefact score (real pictures about 1): base {found['base']:.2f}, personal "
        f"{found['personal']:.2f}, difference {added['mean']:+.2f} ({added['low']:+.2f} to "
        f"{added['high']:+.2f}); real pictures of the personal ones' style "
        f"{found['real_of_like_style']:.2f}"
    )


def _against(found: dict[str, Any]) -> str:
    return (
        f"- against {found['release']} for the same people at the same seeds: beats it in "
        f"{_rate(found['beaten'])} %, wins over the base {_points(found['minus'])} more, content "
        f"{_points(found['content']['mean']['difference'])}"
    )


def _interpolation(found: dict[str, Any]) -> str:
    (median, low, high), curve = found["spearman"], found["mean_reward"]
    steps = ", ".join(
        f"{share:g}: {own:+.2f} · {other:+.2f}"
        for share, own, other in zip(
            found["shares"], curve, found["mean_reward_of_the_other"], strict=True
        )
    )
    every = "every step increases" if found["every_step_increases"] else "not every step increases"
    return (
        f"- between two users, {found['pairs']} pairs, {found['pictures_a_point']} pictures a "
        f"point: rank correlation of share and reward, median {median:.2f} (quartiles {low:.2f}, "
        f"{high:.2f}), of the other {found['spearman_of_the_other'][0]:.2f}; mean reward by share "
        f"(user · the other) {steps}: {every}"
    )


_TOLD = {
    "adherence": _adherence,
    "identification": _identification,
    "artefacts": _artefacts,
    "interpolation": _interpolation,
    "against": _against,
}


def _rate(found: dict[str, Any]) -> str:
    return f"{100 * found['value']:.1f} ({100 * found['low']:.1f}–{100 * found['high']:.1f})"


def _points(found: dict[str, Any]) -> str:
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f}, n={found['count']})"


def write_report(
    report: dict[str, Any],
    outcomes: dict[str, Outcome],
    panel: Panel,
    out: Path,
) -> None:
    """``report.json``, ``report.md`` and a contact sheet of the first users, with what each likes
    most."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(markdown(report))
    names = [n for n in ("base", "personal", "mismatched", "true taste") if n in outcomes]
    shown = min(10, *(len(outcomes[name].images) for name in names))  # side conditions are shorter
    rows = [
        Row(
            f"{CAPTIONS[panel.captions[user]]}; likes {in_words(panel.tastes[[user]], _WISHES)}",
            [Image.fromarray(outcomes[name].images[user]) for name in names],
        )
        for user in range(shown)
    ]
    stack([grid(names, rows, side=128)]).save(out / "sheet.png")
