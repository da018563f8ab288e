"""Suite ``science`` as a description: its tiers, and the cells that a tier consists of. Computes nothing."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from dakter.config import Config
from dakter.data.source import DataConfig
from dakter.data.tiles import TilesConfig
from dakter.diffusion.fit import TrainConfig
from dakter.diffusion.network import NetworkConfig
from dakter.diffusion.sampler import SamplerConfig
from dakter.diffusion.schedule import DiffusionConfig
from dakter.errors import ConfigError
from dakter.students.models import StudentConfig
from dakter.students.train import StudentsConfig
from jobs.suites._science_arms import (
    ABLATIONS,
    ALL_ARMS,
    ARMS,
    CANDIDATES,
    DRAWN,
    GENERATORS,
    KEPT,
    LAST,
    LATE,
    POOLED,
    RARE,
    SEARCHED,
    TAUGHT,
    VIEWS,
    Arm,
    Labels,
)


@dataclass(frozen=True)
class Tier:
    """All settings of a tier; ``num_labelled`` (None: all) and counts in ``data`` are per sensor."""

    data: DataConfig
    tiles: TilesConfig
    num_labelled: Labels
    network: NetworkConfig
    train: TrainConfig
    sampler: SamplerConfig
    num_generated: int
    evaluations: int
    students: StudentsConfig
    architectures: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    num_resamples: int = 2000
    generators: tuple[str, ...] = ()  # beside those of the arms
    reads_test: bool = True  # a search does not: val alone steers
    primary: tuple[str, str] = ("ours", "real")  # the one contrast that is not corrected for looking at many

    def labels_of(self, arm: Arm) -> Labels:
        return self.num_labelled if arm.num_labelled == "tier" else arm.num_labelled

    def data_of(self, labels: Labels, seed: int) -> DataConfig:
        """The labelled subset of a seed; val and test are the same for all. Files of the source are not opened."""
        return self.data.model_copy(update={"num_labelled": labels, "seed": seed})

    def diffusion_of(self, kind: str) -> DiffusionConfig:
        return DiffusionConfig.model_validate(GENERATORS[kind].diffusion)

    def network_of(self, kind: str) -> NetworkConfig:
        return _changed(self.network, GENERATORS[kind].network)

    def train_of(self, kind: str, seed: int) -> TrainConfig:
        own = {**GENERATORS[kind].train, "seed": seed}
        return _changed(self.train, own if GENERATORS[kind].unlabelled else {**own, "unlabelled_share": 0.0})

    def students_of(self, arm: Arm) -> StudentsConfig:
        return _changed(self.students, {"steps": arm.steps or self.students.steps, **arm.shared})

    def student_of(self, arm: Arm, architecture: str, encoder: str) -> StudentConfig:
        share = arm.share if arm.mixes else 0.0
        return StudentConfig.model_validate(
            {"architecture": architecture, "encoder": encoder, "synthetic_share": share, **arm.student}
        )


T = TypeVar("T", bound=Config)


def _changed(config: T, settings: dict[str, Any]) -> T:
    """``config`` with other settings, checked as if they were read from a file."""
    return type(config).model_validate({**config.model_dump(), **settings})


_SOS = DataConfig(source="sos", drop_duplicates=True, num_unlabelled=None)
_HEADLINE = Tier(
    data=_SOS,
    tiles=TilesConfig(size_px=64),
    num_labelled=200,
    network=NetworkConfig(),
    train=TrainConfig(steps=5600, checkpoint_every=700, validate_every=700, log_every=100),
    sampler=SamplerConfig(steps=20, micro_batch=64),
    num_generated=1600,  # four times the labelled pairs of both sensors
    evaluations=8,
    students=StudentsConfig(steps=2000, evaluate_every=100, precision="bf16"),
    architectures=(("Unet", "resnet18"), ("DeepLabV3Plus", "resnet18"), ("Segformer", "mit_b0")),
    seeds=(0, 1, 2),
    arms=tuple(ARMS),
)
# Arms of the generators that val chooses among, whose real images the real teacher labels too.
_OF_CHOICES = tuple(
    name for name, arm in POOLED.items() if arm.generator in ("unlabelled-views", "unlabelled-mean-teacher")
)
# Ten labelled images a sensor: where labels are truly scarce, do soft labels pay? Which ten they are decides most, so
# many draws of them: settings were found with 0 to 4 (tier scarce-cpu), none with the others. Weights of students are
# averaged, which makes their scores less a matter of luck.
_SCARCE = replace(
    _HEADLINE,
    num_labelled=10,
    num_generated=800,
    train=_changed(_HEADLINE.train, {"steps": 2800}),  # without a mean teacher p(y | x) is learnt long before
    students=StudentsConfig(steps=2000, evaluate_every=100, precision="bf16", ema_decay=0.99),
    architectures=_HEADLINE.architectures[:1],
    seeds=tuple(range(10)),
    arms=("real", "hard", "dakter", "selftrain", *LAST, *LATE, *_OF_CHOICES, "real-all"),
    primary=("ours-chosen-last", "real"),
)
# Arms whose generator weighs its classes: where some are rare.
_OF_RARE = (*RARE, *(name for name, arm in POOLED.items() if arm.generator == "unlabelled-rare1"))
# Five classes, masks that are exact, and the true share of every class in every pixel.
_SIM = replace(
    _HEADLINE,
    data=DataConfig.model_validate(
        {
            "source": "simulate",
            "num_train": 400,
            "num_val": 96,
            "num_test": 320,
            "num_unlabelled": 1600,
            "simulate": {"size_px": 64, "pixel_m": 160.0, "looks": 25.0},
        }
    ),
    students=_SCARCE.students,
    architectures=_HEADLINE.architectures[:1],
    arms=(
        "real",
        "hard",
        "dakter",
        "selftrain",
        "selftrain-last",
        "relabel-mean-teacher-last",
        "ours-mean-teacher-last",
        *_OF_RARE,
    ),
    primary=("ours-mean-teacher-last", "real"),
)


def _on_two_cores(tier: Tier) -> Tier:
    """The question of ``tier`` with a quarter of its network, fewer steps and arms: 40 minutes a seed for six."""
    return replace(
        tier,
        network=NetworkConfig(widths=(32, 48, 72)),
        # bf16 is the slower of the two on processors without matrix units for it.
        train=TrainConfig(steps=1400, checkpoint_every=350, validate_evaluations=4, log_every=50, precision="fp32"),
        sampler=SamplerConfig(steps=20, micro_batch=64, precision="fp32"),
        num_generated=800,
        evaluations=4,
        students=StudentsConfig(steps=500, evaluate_every=50, ema_decay=0.98),
        arms=("real", "selftrain", "relabel-views", "ours-views", *TAUGHT),
        generators=("unlabelled-kept",),  # what other views of labels add to it
        primary=("ours-chosen", "real"),
    )


_SCARCE_CPU, _SIM_CPU = _on_two_cores(_SCARCE), _on_two_cores(_SIM)

TIERS = {
    "headline": _HEADLINE,
    # Settings of generators, compared on val with a label subset that no other tier has.
    "search": replace(
        _HEADLINE,
        seeds=(100,),
        arms=tuple(SEARCHED),
        generators=tuple(f"try-{name}" for name in CANDIDATES),
        train=TrainConfig(steps=4000, checkpoint_every=1000, validate_every=1000, log_every=100),
        reads_test=False,
    ),
    "scarce": _SCARCE,
    "scarce-cpu": replace(
        _SCARCE_CPU,
        seeds=tuple(range(8)),
        arms=(*_SCARCE_CPU.arms, "hard", "dakter", *LAST, *DRAWN, *(name for name in POOLED if name not in _OF_RARE)),
        # and what images gain by descriptors, all else alike
        generators=(*_SCARCE_CPU.generators, "unlabelled-end", "unlabelled-described"),
        primary=("ours-chosen-last", "real"),
    ),
    "ablation": replace(
        _HEADLINE,
        architectures=_HEADLINE.architectures[:1],
        arms=("real", "dakter", "ours", "real-all", *ABLATIONS, *KEPT, *VIEWS, *TAUGHT),
    ),
    "sim": _SIM,
    "sim-cpu": replace(
        _SIM_CPU,
        generators=(*_SIM_CPU.generators, "unlabelled-rare0.5", "unlabelled-rare1"),
        arms=(*_SIM_CPU.arms, *_OF_RARE),
    ),
    # The paper's tile size and every label, steps for a GPU; its network is not known. Not run so far.
    "paper": replace(
        _HEADLINE,
        num_labelled=None,
        num_generated=22_000,  # four times the training pairs of the whole set
        arms=tuple(name for name in ARMS if name != "real-all"),
        tiles=TilesConfig(size_px=256),
        network=NetworkConfig(widths=(128, 192, 256, 384), blocks=(2, 2, 2, 2), unshuffle=2, attention=True),
        train=TrainConfig(steps=100_000, checkpoint_every=2000, validate_every=2000, log_every=500),
        students=StudentsConfig(steps=10_000, evaluate_every=500, precision="bf16"),
        architectures=(("Unet", "resnet34"), ("DeepLabV3Plus", "resnet34"), ("Segformer", "mit_b2")),
    ),
    # Every arm and every kind of cell in about a minute; its figures say nothing.
    "short": Tier(
        data=DataConfig.model_validate(
            {
                "source": "simulate",
                "num_train": 12,
                "num_val": 6,
                "num_test": 8,
                "num_unlabelled": 8,
                "simulate": {"size_px": 32, "pixel_m": 320.0},
            }
        ),
        tiles=TilesConfig(size_px=32),
        num_labelled=8,
        network=NetworkConfig(widths=(8, 16), blocks=(1, 1)),
        train=TrainConfig(
            steps=6,
            batch_size=4,
            warmup_steps=2,
            checkpoint_every=3,
            validate_every=3,
            validate_evaluations=1,
            log_every=2,
            precision="fp32",
        ),
        sampler=SamplerConfig(steps=2, micro_batch=4, precision="fp32"),
        num_generated=8,
        evaluations=1,
        students=StudentsConfig(steps=4, batch_size=8, evaluate_every=2),
        architectures=(("FPN", "resnet18"),),
        seeds=(0, 1),
        arms=tuple(ARMS),
        num_resamples=100,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One unit of work with one record. ``name`` is its file name; ``needs`` the cells that it stands on."""

    name: str
    kind: Literal["data", "generator", "student", "images"]
    seed: int
    labels: Labels
    generator: str | None = None
    arm: str | None = None
    architecture: tuple[str, str] | None = None
    needs: tuple[str, ...] = ()


def data_name(labels: Labels, seed: int) -> str:
    return f"data-{_count(labels)}-seed{seed}"


def generator_name(kind: str, labels: Labels, seed: int) -> str:
    return f"generator-{kind}-{_count(labels)}-seed{seed}"


def student_name(arm: str, architecture: str, seed: int) -> str:
    return f"student-{arm}-{architecture.lower()}-seed{seed}"


def images_name(kind: str, labels: Labels, seed: int) -> str:
    return f"images-{kind}-{_count(labels)}-seed{seed}"


def generator_cell(kind: str, labels: Labels, seed: int) -> Cell:
    name, other = generator_name(kind, labels, seed), GENERATORS[kind].weights_of
    needs = (data_name(labels, seed), *([generator_name(other, labels, seed)] if other else []))
    return Cell(name, "generator", seed, labels, kind, needs=needs)


def student_cell(tier: Tier, arm_name: str, architecture: tuple[str, str], seed: int) -> Cell:
    arm = ALL_ARMS[arm_name]
    labels = tier.labels_of(arm)
    needs = [data_name(labels, seed)]
    if arm.generator:
        needs.append(generator_name(arm.generator, labels, seed))
    if arm.needs_teacher:
        needs.append(student_name("real", architecture[0], seed))
    name = student_name(arm_name, architecture[0], seed)
    return Cell(name, "student", seed, labels, arm.generator, arm_name, architecture, tuple(needs))


def images_cell(tier: Tier, kind: str, labels: Labels, seed: int) -> Cell:
    """What a generator's images are like; the encoder is that of the first architecture's student of arm ``real``.

    Training images with every mask are the yardstick, whatever the generator has seen of them.
    """
    architecture = tier.architectures[0]
    needs = (
        data_name(labels, seed),
        data_name(None, seed),
        generator_name(kind, labels, seed),
        student_name("real", architecture[0], seed),
    )
    return Cell(images_name(kind, labels, seed), "images", seed, labels, kind, "real", architecture, needs)


def _count(labels: Labels) -> str:
    return "all" if labels is None else str(labels)


def cells(tier: Tier) -> list[Cell]:
    """Every cell of a tier, each after those that it needs."""
    found: list[Cell] = []
    for seed in tier.seeds:
        for kind in tier.generators:
            found.append(Cell(data_name(tier.num_labelled, seed), "data", seed, tier.num_labelled))
            found.append(generator_cell(kind, tier.num_labelled, seed))
        for arm in (ALL_ARMS[name] for name in tier.arms):
            labels = tier.labels_of(arm)
            found.append(Cell(data_name(labels, seed), "data", seed, labels))
            if arm.generator:
                found.append(generator_cell(arm.generator, labels, seed))
        for architecture in tier.architectures:
            found += [student_cell(tier, arm, architecture, seed) for arm in tier.arms]
        if "real" in tier.arms:
            found.append(Cell(data_name(None, seed), "data", seed, None))
            arms = [ALL_ARMS[name] for name in tier.arms]
            found += [images_cell(tier, arm.generator, tier.labels_of(arm), seed) for arm in arms if arm.generator]
            found += [images_cell(tier, kind, tier.num_labelled, seed) for kind in tier.generators]
    return list({cell.name: cell for cell in found}.values())  # a name keeps its first place


def select(everything: Sequence[Cell], patterns: str) -> list[Cell]:
    """Cells whose name fits one of the comma-separated shell patterns, and all that those need, in order.

    Raises:
        ConfigError: a pattern that fits no cell.
    """
    by_name = {cell.name: cell for cell in everything}
    wanted: set[str] = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        fitting = fnmatch.filter(by_name, pattern)
        if not fitting:
            raise ConfigError(
                f"science.cells {pattern!r} fits no cell; expected names or patterns such as "
                f"{everything[0].name}, student-ours-* (--dry-run lists them all)"
            )
        wanted.update(fitting)
    pending = list(wanted)
    while pending:
        new = set(by_name[pending.pop()].needs) - wanted
        wanted |= new
        pending += new
    return [cell for cell in everything if cell.name in wanted]
