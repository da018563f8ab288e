"""What the sweep may choose, for each arm, and how a choice becomes a student. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

from pydantic import model_validator

from dakter.config import Config, load, setting
from dakter.errors import ConfigError
from dakter.rng import permutation
from dakter.students.models import Architecture, StudentConfig, check_pairs
from dakter.students.train import StudentsConfig

Arm = Literal["real", "distilled"]
ARMS: tuple[Arm, ...] = get_args(Arm)
Range = tuple[float, float]


class SweepConfig(Config):
    """Budget and space of the search. Both arms get the same budget; the control lacks what concerns generated data.

    A range is (lowest, highest); two equal ends fix the value.
    """

    num_trials: int = setting(24, "trials of each arm", ge=1)
    grace_steps: int = setting(200, "steps before a trial may be stopped early", ge=1)
    reduction_factor: float = setting(
        3.0, "at each rung (grace_steps times a power of it) the best 1/factor of the trials go on", gt=1
    )
    architectures: tuple[Architecture, ...] = setting(
        get_args(Architecture), "architectures; the first trials take one of each", min_length=1
    )
    encoders: tuple[str, ...] = setting(
        ("resnet18", "resnet34", "mobilenet_v2", "efficientnet-b0", "mit_b0", "tu-mobilenetv3_small_100"),
        "encoders, each with every architecture but for skip_pairs",
        min_length=1,
    )
    skip_pairs: tuple[str, ...] = setting(
        ("UnetPlusPlus/mit_b0", "Linknet/mit_b0"), "architecture/encoder pairs to leave out"
    )
    encoder_weights: str | None = setting(None, "pretrained encoder weights, e.g. imagenet (downloaded); null: none")
    learning_rate: Range = setting((3e-4, 3e-3), "range of the peak learning rate (log scale)")
    weight_decay: Range = setting((1e-5, 1e-2), "range of the weight decay (log scale)")
    ce_weight: Range = setting((0.5, 2.0), "range of the weight of cross-entropy on real labels (log scale)")
    dice_weight: Range = setting((0.0, 1.0), "range of the weight of the soft Dice loss")
    kd_weight: Range = setting((0.5, 2.0), "range of the weight of cross-entropy on generated labels (log scale)")
    temperature: Range = setting((0.5, 2.0), "range of the temperature of generated labels (log scale)")
    synthetic_share: Range = setting((0.25, 0.8), "range of the share of generated samples in a batch")

    @model_validator(mode="after")
    def _ranges(self) -> SweepConfig:
        for name in (*_COMMON, *_SYNTHETIC):
            low, high = getattr(self, name)
            floor_open = name in _LOG
            if low > high or low < 0 or (floor_open and low <= 0) or (name == "synthetic_share" and high >= 1):
                bound = "0 < " if floor_open else "0 <= "
                raise ValueError(
                    f"{name} [{low}, {high}] to be a range {bound}lowest <= highest"
                    + (" < 1" if name == "synthetic_share" else "")
                )
        return self


_COMMON = ("learning_rate", "weight_decay", "ce_weight", "dice_weight")
_SYNTHETIC = ("kd_weight", "temperature", "synthetic_share")
_LOG = {"learning_rate", "weight_decay", "ce_weight", "kd_weight", "temperature"}


class Suggesting(Protocol):
    """The part of an Optuna trial that is used."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


def encoders_of(sweep: SweepConfig, architecture: str) -> list[str]:
    """The encoders that the space pairs with an architecture."""
    return [encoder for encoder in sweep.encoders if f"{architecture}/{encoder}" not in sweep.skip_pairs]


def suggest(sweep: SweepConfig, arm: Arm, trial: Suggesting) -> dict[str, Any]:
    """Draw one choice (Optuna's define-by-run form); returns what is not itself a draw.

    What both arms have is drawn first, so that with one seed their first trials are drawn alike.
    """
    architecture = trial.suggest_categorical("architecture", sweep.architectures)
    # A name of its own for each architecture: Optuna wants the choices of a name to stay the same.
    fixed: dict[str, Any] = {
        "encoder": trial.suggest_categorical(f"encoder of {architecture}", encoders_of(sweep, architecture))
    }
    for name in (*_COMMON, *(_SYNTHETIC if arm == "distilled" else ())):
        low, high = getattr(sweep, name)
        if low == high:
            fixed[name] = low
        else:
            trial.suggest_float(name, low, high, log=name in _LOG)
    return fixed


def student_config(sweep: SweepConfig, params: Mapping[str, Any]) -> StudentConfig:
    """The student that a drawn choice stands for."""
    known = {key: value for key, value in params.items() if key in StudentConfig.model_fields}
    return load(StudentConfig, {**known, "encoder_weights": sweep.encoder_weights}, where="trial")


def first_points(sweep: SweepConfig, seed: int) -> list[dict[str, Any]]:
    """Starting points: one trial an architecture, in an order drawn from the seed, the rest left to the sampler."""
    order = permutation(len(sweep.architectures), seed, "sweep/first", 0)
    return [{"architecture": sweep.architectures[at]} for at in order][: sweep.num_trials]


def startup_trials(sweep: SweepConfig) -> int:
    """Trials before the sampler proposes from what it has seen; the starting points fix the architecture alone."""
    return max(2, sweep.num_trials // 3)


def rungs(sweep: SweepConfig, common: StudentsConfig) -> list[int]:
    """Steps at which trials are compared and stopped: evaluations at or just after grace_steps * factor^k."""
    found, milestone = [], float(sweep.grace_steps)
    while milestone < common.steps:
        evaluation = -(-int(milestone) // common.evaluate_every) * common.evaluate_every
        if evaluation < common.steps:
            found.append(evaluation)
        milestone *= sweep.reduction_factor
    return found


def check(sweep: SweepConfig, common: StudentsConfig, *, bands: int, size_px: int) -> None:
    """Refuse, before any work, a sweep that could fail on the way.

    Raises:
        ConfigError: a network that cannot be built or cannot take the tiles, an architecture without an encoder, or
            no evaluation at which a trial could be stopped.
    """
    pairs: list[tuple[Architecture, str]] = []
    for architecture in sweep.architectures:
        encoders = encoders_of(sweep, architecture)
        if not encoders:
            raise ConfigError(
                f"sweep.architectures holds {architecture}, and sweep.skip_pairs leaves it no encoder of "
                f"{', '.join(sweep.encoders)}; add one, or take the architecture out"
            )
        pairs += [(architecture, encoder) for encoder in encoders]
    if not rungs(sweep, common):
        raise ConfigError(
            f"sweep.grace_steps {sweep.grace_steps} and students.evaluate_every {common.evaluate_every} leave no "
            f"evaluation before students.steps {common.steps}: nothing could stop early; expected smaller ones"
        )
    check_pairs(pairs, weights=sweep.encoder_weights, bands=bands, size_px=size_px)
