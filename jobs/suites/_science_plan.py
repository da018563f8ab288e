"""Suite ``science`` as a description: generators, arms, tiers, and the cells that a tier consists of. Computes nothing.

Every arm has the same steps, batch size, augmentation and student; arms differ in what fills a batch beside the real
labelled rows, and arms with the same generator share its samples.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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

# None: every label that the set has.
Labels = int | None
SoftLabel = Literal["last_step", "argmax", "readout", "teacher"]


@dataclass(frozen=True)
class Generator:
    """A kind of joint diffusion model; ``unlabelled``: it also learns from images without labels.

    ``network`` and ``train`` are settings of its own, where the tier's are not meant.
    """

    diffusion: dict[str, Any]
    unlabelled: bool = False
    network: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    @property
    def labels_images(self) -> bool:
        """Whether it knows p(y | x): only with noise levels of its own for the label."""
        return self.diffusion.get("mode") == "independent"


_PAPER, _PLAIN = {"mode": "joint"}, {"mode": "independent"}
# More rows that ask for p(y | x) outright, for fewer of p(x, y): of all candidates of one cost it was the best on val.
_OURS = {
    **_PLAIN,
    "share_equal": 0.3,
    "share_independent": 0.25,
    "share_image_clean": 0.4,
    "share_label_clean": 0.05,
}
_WIDE = {"widths": (96, 144, 192)}
# p(y | x) of val is at its best long before the samples are: the weights of that step, and no long wait after it.
_KEPT = {"keep": "best", "validate_every": 350, "patience": 4}
# What a generator could be changed in, one thing at a time and some together: tier search compares them on val.
CANDIDATES = {
    "base": Generator(_PLAIN, True),
    "more-labels": Generator(_OURS, True),
    "label-weight-3": Generator({**_PLAIN, "label_weight": 3.0}, True),
    "min-snr": Generator({**_PLAIN, "min_snr_gamma": 5.0}, True),
    "dropout": Generator(_PLAIN, True, {"dropout": 0.1}),
    "wide": Generator(_PLAIN, True, _WIDE),
    "attention": Generator(_PLAIN, True, {"attention": True}),
    "batch-64": Generator(_PLAIN, True, train={"batch_size": 64}),
    "rate-2e-3": Generator(_PLAIN, True, train={"learning_rate": 2e-3}),
    "unlabelled-25": Generator(_PLAIN, True, train={"unlabelled_share": 0.25}),
    "more-labels-dropout": Generator(_OURS, True, {"dropout": 0.1}),
    "together": Generator(_OURS, True, {**_WIDE, "dropout": 0.1, "attention": True}, {"batch_size": 64}),
    "kept": Generator(_OURS, True, train=_KEPT),
    "kept-dropout": Generator(_OURS, True, {"dropout": 0.1}, _KEPT),
    "kept-half-rate": Generator(_OURS, True, train={**_KEPT, "learning_rate": 5e-4}),
}
GENERATORS = {
    "paper": Generator(_PAPER),
    "jointnet": Generator({**_PAPER, "label_loss": "mse", "b": 1.0}),
    "labelled": Generator(_OURS),
    "unlabelled": Generator(_OURS, unlabelled=True),
    "labelled-kept": Generator(_OURS, train=_KEPT),
    "unlabelled-kept": Generator(_OURS, True, train=_KEPT),
    # Parts taken away, and the sweep of b.
    "unlabelled-mse": Generator({**_OURS, "label_loss": "mse"}, unlabelled=True),
    **{f"unlabelled-b{b:g}": Generator({**_OURS, "b": b}, unlabelled=True) for b in (0.1, 0.3, 1.0)},
    "paper-b1": Generator({**_PAPER, "b": 1.0}),
    "paper-mse": Generator({**_PAPER, "label_loss": "mse"}),
    **{f"try-{name}": candidate for name, candidate in CANDIDATES.items()},
}


@dataclass(frozen=True)
class Arm:
    """What a student of this arm learns from, beside ``num_labelled`` real pairs.

    Attributes:
        what: in words, for the page.
        generator: name in GENERATORS, or None.
        generated: soft label of the generated images in its batches; None: no such rows. ``teacher`` is the student
            of arm ``real`` with the same seed and architecture.
        real_unlabelled: who labels the real unlabelled images in its batches; None: no such rows.
        share: of a batch that is not real labelled pairs, parted equally between the two.
        num_labelled: real labels a sensor; "tier" as the tier says, None every one there is.
        student: student settings of its own.
        steps: training steps of its own; None: those of the tier.
    """

    what: str
    generator: str | None = None
    generated: SoftLabel | None = None
    real_unlabelled: Literal["generator", "teacher"] | None = None
    share: float = 0.75
    num_labelled: int | Literal["tier"] | None = "tier"
    student: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None

    @property
    def needs_teacher(self) -> bool:
        return "teacher" in (self.generated, self.real_unlabelled)

    @property
    def mixes(self) -> bool:
        """Whether its batches hold anything but real pairs."""
        return bool(self.generated or self.real_unlabelled)


_DAKTER = Arm("the paper: soft label of the last step", "paper", "last_step")
_FULL = Arm(
    "generated pairs with p(y given x), and real unlabelled images with p(y given x), half and half",
    "unlabelled",
    "readout",
    "generator",
)
ARMS = {
    "real": Arm("real labels only"),
    "hard": replace(_DAKTER, what="the paper's model, argmax labels", generated="argmax"),
    "jointnet": replace(_DAKTER, what="squared error on the label, b = 1", generator="jointnet"),
    "pseudo": replace(_DAKTER, what="the paper's images, labelled by the real teacher", generated="teacher"),
    "dakter": _DAKTER,
    "ours-labelled": Arm("independent noise levels, p(y given x), no unlabelled image", "labelled", "readout"),
    "selftrain": Arm("real unlabelled images, labelled by the real teacher", real_unlabelled="teacher"),
    "relabel": Arm("real unlabelled images with p(y given x), nothing generated", "unlabelled", None, "generator"),
    "ours": _FULL,
    "real-all": Arm("real, with every label that exists: the ceiling", num_labelled=None),
}
# One part changed at a time.
ABLATIONS = {
    "ours-generated": replace(_FULL, what="ours without real unlabelled rows", real_unlabelled=None),
    "ours-last-step": replace(_FULL, what="ours with the soft label of the last step", generated="last_step"),
    "ours-mse": replace(_FULL, what="ours with squared error on the label", generator="unlabelled-mse"),
    **{f"ours-b{b:g}": replace(_FULL, what=f"ours, b = {b:g}", generator=f"unlabelled-b{b:g}") for b in (0.1, 0.3, 1)},
    "dakter-b1": replace(_DAKTER, what="the paper, b = 1", generator="paper-b1"),
    "dakter-mse": replace(_DAKTER, what="the paper, squared error on the label", generator="paper-mse"),
    **{
        f"ours-{times}x": replace(_FULL, what=f"ours, {times} other rows for each real one", share=times / (times + 1))
        for times in (1, 2, 4)
    },
    **{
        f"{name}-{labels}": replace(arm, what=f"{arm.what}; {labels} labels a sensor", num_labelled=labels)
        for name, arm in (("real", Arm("real labels only")), ("ours", _FULL))
        for labels in (100,)
    },
    "ours-all": replace(_FULL, what="ours with every label that exists", num_labelled=None),
    "ours-confidence": replace(_FULL, what="ours, certain pixels weigh more", student={"confidence_gamma": 1.0}),
    "ours-consistency": replace(_FULL, what="ours, two views must agree", student={"consistency_weight": 1.0}),
    "ours-schedule": replace(
        _FULL, what="ours, other rows fewer and fewer, at last none", student={"final_share": 0.0}
    ),
    # One row of a batch stays real, since batches must hold one; its loss weighs nothing.
    "synthetic": Arm(
        "trained on generated pairs alone (train on synthetic, test on real)",
        "unlabelled",
        "readout",
        share=0.99,
        student={"ce_weight": 0.0, "dice_weight": 0.0},
    ),
}
# Ours, with the generator at its lowest NLL on val.
KEPT = {
    f"{name}-kept": replace(
        arm, what=f"{arm.what}; the generator at its lowest NLL on val", generator=f"{arm.generator}-kept"
    )
    for name, arm in ARMS.items()
    if name in ("ours-labelled", "relabel", "ours")
}


def base_of(name: str) -> str:
    """The arm that one of ABLATIONS is to be compared with: real with the same labels, or the arm that it changes."""
    arm = ALL_ARMS[name]
    if arm.num_labelled != "tier":
        same = "real-all" if arm.num_labelled is None else f"real-{arm.num_labelled}"
        return "real" if name == same else same
    return next((whole for whole in ("ours", "dakter") if name.startswith(f"{whole}-")), "real")


# Steps and settings that a search compares on val.
SEARCHED = {
    f"{name}-{steps}-steps": replace(arm, what=f"{arm.what}; {steps} steps", steps=steps)
    for name, arm in (("real", ARMS["real"]),)
    for steps in (1000, 3000)
}
ALL_ARMS = {**ARMS, **ABLATIONS, **KEPT, **SEARCHED}


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
        return _changed(self.students, {"steps": arm.steps or self.students.steps})

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
    # A quarter of the labels of tier headline: where labels are scarce, do soft labels pay?
    "scarce": replace(
        _HEADLINE,
        num_labelled=50,
        architectures=_HEADLINE.architectures[:1],
        arms=("real", "hard", "dakter", "selftrain", *KEPT, "real-all"),
        primary=("ours-kept", "real"),
    ),
    "ablation": replace(
        _HEADLINE,
        architectures=_HEADLINE.architectures[:1],
        arms=("real", "dakter", "ours", "real-all", *ABLATIONS, *KEPT),
    ),
    "sim": replace(
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
        architectures=_HEADLINE.architectures[:1],
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
    name = generator_name(kind, labels, seed)
    return Cell(name, "generator", seed, labels, kind, needs=(data_name(labels, seed),))


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
    """What a generator's images are like; the encoder is that of the first architecture's student of arm ``real``."""
    architecture = tier.architectures[0]
    needs = (data_name(labels, seed), generator_name(kind, labels, seed), student_name("real", architecture[0], seed))
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
            arms = [ALL_ARMS[name] for name in tier.arms]
            found += [images_cell(tier, arm.generator, tier.labels_of(arm), seed) for arm in arms if arm.generator]
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
