"""An independent judge of content: which subject, setting and size does a picture show?

A small convolutional classifier trained on painted pictures of *every* caption, none of which any
generative stage has seen (pool ``content``), with photometric noise so that a generated picture's
slight blur is no surprise. Trained and frozen before the first adapter, by
``python -m training.evaluate.content``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.autoencoder import to_input
from training.data.pool import Pool, load_pool
from training.data.world import CAPTIONS, SETTINGS, SIZES, SUBJECTS
from training.stage import Draws, Metrics, Stage

WEIGHTS = Path(__file__).with_name("content.safetensors")
PARTS = ("size", "subject", "setting")
_COUNTS = (len(SIZES), len(SUBJECTS), len(SETTINGS))
_LABELS = torch.tensor(
    [[SIZES.index(c.size), SUBJECTS.index(c.subject), SETTINGS.index(c.setting)] for c in CAPTIONS]
)


class ContentJudge(nn.Module):
    """``[B, 3, 128, 128]`` in [-1, 1] -> logits per part."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for k in range(4):
            out = width * (1, 2, 3, 4)[k]
            layers += [nn.Conv2d(channels, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * 16, sum(_COUNTS))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = F.adaptive_avg_pool2d(self.body(F.avg_pool2d(images, 2)), 4).flatten(1)
        return self.head(features).split(_COUNTS, dim=1)


def content_stage(judge: ContentJudge, pool: Pool, directory: Path, *, steps: int) -> Stage:
    def loss(step: int, draw: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        picked = draw.numpy.integers(len(pool), size=48)
        images = to_input(pool.images[picked])
        if draw.numpy.random() < 0.5:
            images = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
        strength = 0.15 * torch.rand(len(images), 1, 1, 1, generator=draw.torch)
        images = images + strength * torch.randn(images.shape, generator=draw.torch)
        label = _LABELS[pool.captions[picked]]
        logits = judge(images)
        yield (
            sum(
                (F.cross_entropy(part, label[:, k]) for k, part in enumerate(logits)),
                torch.zeros(()),
            ),
            {},
        )

    return Stage(
        name="content", directory=directory, modules={"judge": judge}, loss=loss, steps=steps,
        learning_rate=2e-3, ema_decay=0.98,
    )  # fmt: skip


def save_judge(judge: ContentJudge, path: Path = WEIGHTS) -> None:
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in judge.state_dict().items()}, path
    )


def load_judge(path: Path = WEIGHTS) -> ContentJudge:
    judge = ContentJudge()
    judge.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    )
    return judge.eval()


@torch.no_grad()
def content_right(
    judge: ContentJudge, images: NDArray[np.uint8], captions: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Right or wrong per picture and part: ``[B, 3]`` in the order of PARTS."""
    found = []
    for start in range(0, len(images), 128):
        logits = judge(to_input(images[start : start + 128]))
        found.append(torch.stack([part.argmax(1) for part in logits], 1))
    return (torch.cat(found) == _LABELS[captions]).numpy()


def main(work: Path = Path("runs/studio")) -> None:
    """Train the judge again. Its weights are part of the world's fingerprint: figures before and
    after do not compare."""
    judge = ContentJudge()
    stage = content_stage(judge, load_pool(work / "pool", "content", 6000), work, steps=1200)
    if not stage.run():
        raise SystemExit("interrupted and saved: call again")
    save_judge(judge.eval())
    fresh = load_pool(work / "pool", "test", 2000)
    right = content_right(load_judge(), fresh.images, fresh.captions).mean(0)
    print(dict(zip(PARTS, right.round(4).tolist(), strict=True)))


if __name__ == "__main__":
    main()
