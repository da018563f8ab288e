"""Generators and arms of suite ``science``: what is compared, tier by tier. Computes nothing.

Every arm has the same steps, batch size, augmentation and student; arms differ in what fills a batch beside the real
labelled rows (those of LAST in how much of it, and in which weights are kept), and arms with the same generator share
its samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

# None: every label that the set has.
Labels = int | None
SoftLabel = Literal["last_step", "argmax", "readout", "teacher"]


@dataclass(frozen=True)
class Generator:
    """A kind of joint diffusion model; ``unlabelled``: it also learns from images without labels.

    ``network`` and ``train`` are settings of its own, where the tier's are not meant. ``weights_of``: it has those of
    another kind, and only draws otherwise; ``render``: the shares of its images that are drawn for label maps.
    """

    diffusion: dict[str, Any]
    unlabelled: bool = False
    network: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    weights_of: str | None = None
    render: dict[str, Any] = field(default_factory=dict)

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
# And other views of the rows that ask for p(y | x): with them it goes on longer before it turns.
_VIEWS = {**_KEPT, "label_views": {"zoom_share": 0.5, "gain": 0.15, "gamma": 0.15}}
# And a mean teacher for a quarter of the rows of unlabelled images.
_TAUGHT = {**_VIEWS, "mean_teacher": {"share": 0.25, "start_step": 350, "temperature": 1.0}}
# With one, the last weights need not be chosen by val: after as many steps as the tier has, or as samples want.
_TO_THE_END = {**_TAUGHT, "keep": "last", "patience": None}
_LATE = {**_TO_THE_END, "steps": 5600}
# Share of a batch of 32 that leaves the one real row that every batch has.
_ALL_BUT_ONE = 0.99
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
    "kept-views": Generator(_OURS, True, train=_VIEWS),
    "kept-half-rate": Generator(_OURS, True, train={**_KEPT, "learning_rate": 5e-4}),
}
_DESCRIBED = Generator(_OURS, True, {"descriptors": True}, _TO_THE_END)
GENERATORS = {
    "paper": Generator(_PAPER),
    "jointnet": Generator({**_PAPER, "label_loss": "mse", "b": 1.0}),
    "labelled": Generator(_OURS),
    "unlabelled": Generator(_OURS, unlabelled=True),
    "labelled-kept": Generator(_OURS, train=_KEPT),
    "unlabelled-kept": Generator(_OURS, True, train=_KEPT),
    "labelled-views": Generator(_OURS, train=_VIEWS),
    "unlabelled-views": Generator(_OURS, True, train=_VIEWS),
    "unlabelled-mean-teacher": Generator(_OURS, True, train=_TAUGHT),
    "unlabelled-late": Generator(_OURS, True, train=_LATE),
    "unlabelled-end": Generator(_OURS, True, train=_TO_THE_END),
    "unlabelled-described": _DESCRIBED,
    "unlabelled-rendered": replace(
        _DESCRIBED, weights_of="unlabelled-described", render={"others": 1.0, "maps": "both"}
    ),
    # Classes weighed by how rare they are, all else as unlabelled-views.
    **{f"unlabelled-rare{p:g}": Generator({**_OURS, "rare_class_power": p}, True, train=_VIEWS) for p in (0.5, 1.0)},
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
        real_unlabelled: who labels the real unlabelled images in its batches; None: no such rows. ``pool`` is the
            mean of what generator and teacher say, with the weights of the least NLL on val.
        share: of a batch that is not real labelled pairs, parted equally between the two.
        num_labelled: real labels a sensor; "tier" as the tier says, None every one there is.
        student: student settings of its own.
        steps: training steps of its own; None: those of the tier.
        shared: settings of StudentsConfig in place of the tier's, beside ``steps``, which older records name apart.
    """

    what: str
    generator: str | None = None
    generated: SoftLabel | None = None
    real_unlabelled: Literal["generator", "teacher", "pool"] | None = None
    share: float = 0.75
    num_labelled: int | Literal["tier"] | None = "tier"
    student: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def needs_teacher(self) -> bool:
        return self.pools or "teacher" in (self.generated, self.real_unlabelled)

    @property
    def pools(self) -> bool:
        """Whether generator and teacher together label the real unlabelled images in its batches."""
        return self.real_unlabelled == "pool"

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
        share=_ALL_BUT_ONE,
        student={"ce_weight": 0.0, "dice_weight": 0.0},
    ),
}


def _ours_with(changed: str, what: str, arms: tuple[str, ...] = ("ours-labelled", "relabel", "ours")) -> dict[str, Arm]:
    """Arms of ours with another generator, ``<its>-<changed>``."""
    return {
        f"{name}-{changed}": replace(arm, what=f"{arm.what}; {what}", generator=f"{arm.generator}-{changed}")
        for name, arm in ((name, ARMS[name]) for name in arms)
    }


KEPT = _ours_with("kept", "the generator at its lowest NLL on val")
VIEWS = _ours_with("views", "the generator at its lowest NLL on val, with other views of labelled images")
# Without unlabelled images there is nothing to teach.
TAUGHT = _ours_with(
    "mean-teacher",
    "the generator at its lowest NLL on val, with other views of labelled images and a mean teacher",
    ("relabel", "ours"),
)


def _with_last(name: str) -> Arm:
    """An arm whose students have the weights of the last step and, where it has soft labels, one real row a batch."""
    arm = _WITHOUT_LAST[name]
    shared = {"keep": "last"}
    if not arm.mixes:
        return replace(arm, what=f"{arm.what}; weights of the last step", shared=shared)
    what = f"{arm.what}; weights of the last step, one real labelled row a batch"
    return replace(arm, what=what, shared=shared, share=_ALL_BUT_ONE)


# Samples want more steps than p(y | x) of val does: do students want the better ones?
_LATER = _ours_with("late", "with other views of labelled images and a mean teacher, long trained", ("relabel", "ours"))
# Does it matter to students what their images are like?
_RENDERED = _ours_with("rendered", "the same generator, every image drawn for a label map", ("ours",))
_DRAWN = {
    **_ours_with("described", "the generator at its last step, images told descriptors", ("relabel", "ours")),
    **_RENDERED,
    "ours-mapped": replace(
        _RENDERED["ours-rendered"],
        what="as ours-rendered, generated images labelled by the label maps that they were drawn for",
        generated="last_step",
    ),
}
_RARE = _ours_with("rare1", "classes weighed by how rare they are in the generator's label loss", ("relabel", "ours"))
# Generator and real teacher err in different places: are both together the better labeller?
_POOLED = {
    f"{name}-pooled": replace(
        arm, what=f"{arm.what}; real images labelled by generator and real teacher together", real_unlabelled="pool"
    )
    for name, arm in {**VIEWS, **TAUGHT, **_DRAWN, **_RARE}.items()
    if arm.real_unlabelled and arm.generator != "unlabelled-rendered"
}
_WITHOUT_LAST = {**ARMS, **KEPT, **VIEWS, **TAUGHT, **_LATER, **_DRAWN, **_RARE, **_POOLED}
LAST = {
    f"{name}-last": _with_last(name)
    for name in ("real", "hard", "dakter", "selftrain", "ours-labelled-views", "relabel-views", "ours-views", *TAUGHT)
}
LATE = {f"{name}-last": _with_last(name) for name in _LATER}
DRAWN = {f"{name}-last": _with_last(name) for name in _DRAWN}
RARE = {f"{name}-last": _with_last(name) for name in _RARE}
POOLED = {f"{name}-last": _with_last(name) for name in _POOLED}


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
ALL_ARMS = {**_WITHOUT_LAST, **ABLATIONS, **LAST, **LATE, **DRAWN, **RARE, **POOLED, **SEARCHED}
