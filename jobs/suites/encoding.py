"""Suite ``encoding``: how to store a soft label. Total variation, argmax, bytes, and what a student loses by it.

The soft labels are those of simulated scenes: the class map blurred, noise on its logits, a softmax sharpened until the
mean entropy is the one stated. With ``paths.model`` they are a trained model's, tempered to the same entropies.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numcodecs import zstd
from scipy.ndimage import gaussian_filter

from dakter import rng
from dakter.data.simulate import SceneConfig, simulate
from dakter.diffusion.pipeline import open_model
from dakter.diffusion.sampler import SamplerConfig
from dakter.diffusion.softlabel import SoftLabelConfig
from dakter.schema import OSD, soft_to_stored, to_stored
from dakter.students.models import StudentConfig, predict
from dakter.students.train import LabelledArrays, StudentsConfig, fit
from jobs._cli import Stop
from jobs.suites._paced_sampler import entropy_nats

log = logging.getLogger("dakter.jobs.benchmark")

ENTROPIES_NATS = (0.05, 0.25)
LEVEL = 3  # of zstd, as a corpus has it by default


@dataclass(frozen=True)
class Encoding:
    """A way to store probabilities: float32 ``(N, K, H, W)`` to what is stored, and back to float32 that sums to 1."""

    store: Callable[[np.ndarray], np.ndarray]
    load: Callable[[np.ndarray], np.ndarray]


def _normalised(p: np.ndarray) -> np.ndarray:
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def _as_float(stored: np.ndarray) -> np.ndarray:
    return _normalised(stored.astype(np.float32))


ENCODINGS = {
    "uint8 of p": Encoding(soft_to_stored, _as_float),
    "uint8 of sqrt(p)": Encoding(
        lambda p: np.rint(np.sqrt(p) * 255.0).astype(np.uint8), lambda q: _as_float(q.astype(np.uint16) ** 2)
    ),
    "uint16 of p": Encoding(lambda p: np.rint(p * 65535.0).astype(np.uint16), _as_float),
    "float16 of p": Encoding(lambda p: p.astype(np.float16), _as_float),
}


@dataclass(frozen=True)
class Sizes:
    """How much a tier measures."""

    tiles: int  # of 256 px, for size and distance
    train: int  # scenes of 64 px
    val: int
    steps: int
    seeds: int


FULL, SHORT = Sizes(12, 192, 64, 120, 3), Sizes(2, 16, 8, 6, 1)


def run(settings: Any, stop: Stop) -> dict[str, Any]:
    """The figures at each of ``ENTROPIES_NATS``."""
    return measure(FULL if settings.tier == "full" else SHORT, stop, model=settings.paths.model)


def measure(sizes: Sizes, stop: Stop, *, model: str | None = None) -> dict[str, Any]:
    """The figures, from simulated scenes or, with ``model``, from what that model draws."""
    pairs = functools.partial(_drawn, model) if model else _simulated
    _, tiles = pairs(sizes.tiles, 256)
    images, soft = pairs(sizes.train, 64)
    scenes = [_scene(64, 1_000_000 + index) for index in range(sizes.val)]
    val = LabelledArrays(np.stack([scene.image for scene in scenes]), np.stack([scene.label for scene in scenes]))
    found: dict[str, Any] = {"source": model or "simulated scenes", "sizes": sizes.__dict__}
    for nats in ENTROPIES_NATS:
        p = tempered(tiles, nats)
        found[f"{nats} nats"] = {
            "entropy_nats": round(entropy_nats(p), 4),
            "tile_shape": list(p.shape[1:]),
            "storage": {name: distance(p, encoding) for name, encoding in ENCODINGS.items()},
            "student": _students(images, tempered(soft, nats), val, sizes, stop),
        }
    return found


def tempered(p_NKHW: np.ndarray, nats: float) -> np.ndarray:
    """``p^s``, renormalised, with the ``s`` at which the mean entropy is ``nats`` a pixel: float32, same shape."""
    logits = np.log(np.maximum(p_NKHW, 1e-12), dtype=np.float32)
    logits -= logits.max(axis=1, keepdims=True)
    low, high = 0.0, 64.0  # entropy falls as s rises
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy_nats(_softmax(logits * middle)) > nats else (low, middle)
    return _softmax(logits * high)


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return _normalised(odds)


def distance(p_NKHW: np.ndarray, encoding: Encoding) -> dict[str, float]:
    """What is lost by storing ``p``, a pixel, and what it takes, a sample."""
    stored = encoding.store(p_NKHW)
    back = encoding.load(stored)
    variation = 0.5 * np.abs(p_NKHW - back).sum(axis=1)
    return {
        "total_variation_mean": float(variation.mean()),
        "total_variation_max": float(variation.max()),
        "argmax_flips_share": float((p_NKHW.argmax(axis=1) != back.argmax(axis=1)).mean()),
        "bytes_per_sample": float(np.mean([len(zstd.compress(row, LEVEL, True)) for row in stored])),
    }


@functools.cache
def _scene(size_px: int, index: int) -> Any:
    return simulate(SceneConfig(size_px=size_px, pixel_m=160.0, looks=25.0), 0, index)


def _simulated(count: int, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Scenes and what an unsure labeller might say of them: images uint8, probabilities float32."""
    scenes = [_scene(size_px, index) for index in range(count)]
    soft = []
    for index, scene in enumerate(scenes):
        classes = (scene.label == np.arange(len(OSD))[:, None, None]).astype(np.float32)
        noise = rng.numpy_rng(0, "suites/encoding", index=index).standard_normal(classes.shape)
        blurred = np.stack([gaussian_filter(plane, 1.5) for plane in classes])
        wavering = np.stack([gaussian_filter(plane, 4.0, mode="wrap") for plane in noise])
        soft.append(4.0 * blurred + 1.5 * wavering / wavering.std())
    return np.stack([scene.image for scene in scenes]), _softmax(np.stack(soft))


def _drawn(model: str, count: int, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs from a trained model, at the model's own size whatever is asked for."""
    pipeline: Any = open_model(model).pipeline
    sampler = SamplerConfig()
    indices = np.arange(-(-count // sampler.micro_batch) * sampler.micro_batch)
    parts = [
        pipeline.sample(indices[at : at + sampler.micro_batch], 0, sampler, SoftLabelConfig())
        for at in range(0, len(indices), sampler.micro_batch)
    ]
    images = np.concatenate([torch.as_tensor(part.images).float().cpu().numpy() for part in parts])
    soft = np.concatenate([torch.as_tensor(part.soft_labels).float().cpu().numpy() for part in parts])
    return to_stored(images)[:count], _normalised(soft)[:count]


def _students(
    images: np.ndarray, p: np.ndarray, val: LabelledArrays, sizes: Sizes, stop: Stop
) -> dict[str, dict[str, float]]:
    """Students of the same seeds on the same targets, through each encoding: their val scores less float32's.

    ``jitter`` is float32 changed by one part in a million: how far two trainings drift apart for no reason.
    """
    jitter = 1.0 + 1e-6 * rng.numpy_rng(0, "suites/jitter").standard_normal(p.shape)
    targets = {"float32": p, "jitter": _normalised(p * jitter)}
    targets |= {name: encoding.load(encoding.store(p)) for name, encoding in ENCODINGS.items()}
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in targets}
    for seed in range(sizes.seeds):
        for name, target in targets.items():
            stop.check("a suite keeps nothing unless it ends")
            scores[name].append(_student(images, target, val, sizes.steps, seed))
            log.info("encoding: seed %d, %s: NLL %.4f, mIoU %.4f", seed, name, *scores[name][-1])
    base = scores["float32"]
    found = {"float32": {"val_nll": mean(nll for nll, _ in base), "val_miou": mean(miou for _, miou in base)}}
    for at, what in enumerate(("val_nll", "val_miou")):
        found["float32"][f"{what}_sd_of_seeds"] = stdev(row[at] for row in base) if len(base) > 1 else 0.0
    for name in list(targets)[1:]:
        nll, miou = zip(*((a - c, b - d) for (a, b), (c, d) in zip(scores[name], base, strict=True)), strict=True)
        found[name] = {
            "val_nll_less_float32": mean(nll),
            "val_nll_largest_difference": max(map(abs, nll)),
            "val_miou_less_float32": mean(miou),
            "val_miou_largest_difference": max(map(abs, miou)),
        }
    return found


def _student(images: np.ndarray, p: np.ndarray, val: LabelledArrays, steps: int, seed: int) -> tuple[float, float]:
    """(NLL in nats a pixel, mIoU) on val of one student: a quarter of its rows hard, the rest with targets ``p``."""
    hard = LabelledArrays(images, p.argmax(axis=1).astype(np.uint8))
    # ``fit`` takes stored labels and divides them by 255: probabilities times 255 pass through it unrounded.
    scaled = p * np.float32(255.0)

    def stream(step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = rng.numpy_rng(seed, "suites/rows", step).integers(0, len(images), count)
        return images[rows], scaled[rows]

    result = fit(
        StudentConfig(architecture="PSPNet", synthetic_share=0.75, dice_weight=0.0),
        StudentsConfig(steps=steps, batch_size=16, evaluate_every=max(1, steps // 4), precision="bf16"),
        hard,
        val,
        stream,
        num_classes=len(OSD),
        seed=seed,
        on_evaluate=lambda _: None,
        should_stop=lambda: False,
    )
    given = predict(result.model, val.images)
    likelihood = np.take_along_axis(given, val.labels[:, None].astype(np.int64), axis=1)
    return float(-np.log(np.maximum(likelihood, 1e-12)).mean()), result.kept.val_miou
