"""Settings of the evaluation."""

from __future__ import annotations

from dakter.config import Config, setting


class EvaluateConfig(Config):
    """How models are scored on the test split; which students, and on what, is not a setting."""

    num_resamples: int = setting(2000, "bootstrap draws of every interval", ge=1)
    level: float = setting(0.95, "nominal coverage of every interval", gt=0, lt=1)
    seed: int = setting(
        0, "seed of bootstrap draws, of the pixels that fit the temperature and of the joint model's noise"
    )
    temperature_pixels: int = setting(
        1_000_000, "validation pixels, spread evenly over its images, that fit a temperature", unit="pixels", ge=1
    )
    chunk: int = setting(
        64, "images predicted and scored at a time; changes memory, never a score", unit="images", ge=1
    )
    joint_model: bool = setting(
        True,
        "score the joint model's own p(y | x) beside the students; left out where it was trained with diffusion.mode "
        "joint",
    )
    joint_evaluations: int = setting(
        8, "network evaluations for one image of the joint model, averaged; eight see every turn", ge=1
    )
    latency_runs: int = setting(
        7,
        "timed runs of each packaged model on one image of tile size, of which the median is told; 0 leaves them out",
        ge=0,
    )
    num_images: int = setting(
        256,
        "images at most of each of train, val and the corpus for image statistics; 0 leaves them out",
        unit="images",
        ge=0,
    )
