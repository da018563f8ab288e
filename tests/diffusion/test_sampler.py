from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_toys import Oracle, random_pipeline

from dakter.diffusion.label_maps import Given
from dakter.diffusion.sampler import Denoiser, SamplerConfig, draw_pairs
from dakter.diffusion.schedule import build_scheduler
from dakter.diffusion.softlabel import SoftLabelConfig, chains, readout
from dakter.errors import ConfigError
from dakter.schema import IGNORE

NAMES = ("dpmpp_2m", "ddim", "ddpm")
CPU = torch.device("cpu")


def _draw(network: Any, name: str, steps: int, count: int, b: float) -> tuple[torch.Tensor, torch.Tensor]:
    denoiser = Denoiser(network, "v", "ce", b, CPU, clip=False)
    scheduler = build_scheduler(name, 1000)  # type: ignore[arg-type]
    return draw_pairs(
        denoiser, scheduler, steps, bands=1, num_classes=2, size=(32, 32), clean_t=0.01, seed=0, indices=range(count)
    )


@pytest.mark.parametrize(("name", "steps"), [("dpmpp_2m", 50), ("ddim", 500), ("ddpm", 500)])
def test_the_optimal_network_gives_back_the_distribution(name: str, steps: int) -> None:
    oracle = Oracle()  # first-order solvers narrow the image by 3 % at 100 steps, so they get more
    images, soft = _draw(oracle, name, steps, 24, oracle.b)
    # 24,576 pixels: standard errors .0013 and .0009 of the image, .003 of the share; the rest is the solver's own
    assert float(images.mean()) == pytest.approx(oracle.mean, abs=0.006)
    assert float(images.std()) == pytest.approx(oracle.std, rel=0.03)
    assert float((soft[:, 1] > 0.5).float().mean()) == pytest.approx(oracle.share, abs=0.015)
    assert float(soft.max(1).values.mean()) > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_knows_the_answer_is_believed(name: str) -> None:
    x0, logits = torch.rand(3, 1, 32, 32) - 0.5, torch.randn(3, 2, 32, 32)
    levels: list[float] = []

    def knows(x: torch.Tensor, y: torch.Tensor, t_x: torch.Tensor, t_y: torch.Tensor) -> SimpleNamespace:
        assert torch.equal(t_x, t_y)
        levels.append(float(t_x[0]))
        return SimpleNamespace(image=x0, logits=logits)

    denoiser = Denoiser(knows, "x0", "ce", 0.4, CPU)
    scheduler = build_scheduler(name, 1000)  # type: ignore[arg-type]
    images, soft = draw_pairs(
        denoiser, scheduler, 10, bands=1, num_classes=2, size=(32, 32), clean_t=0.01, seed=0, indices=range(3)
    )
    assert torch.allclose(images, x0, atol=1e-6)
    assert torch.equal(soft, logits.softmax(1))
    assert levels == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(("name", "mode"), [("dpmpp_2m", "readout"), ("ddpm", "chains"), ("ddim", "last_step")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_sample_depends_on_its_number_alone(name: str, mode: str, precision: str) -> None:
    pipe = random_pipeline()
    sampler = SamplerConfig.model_validate({"scheduler": name, "steps": 4, "micro_batch": 4, "precision": precision})
    soft_label = SoftLabelConfig.model_validate({"mode": mode, "evaluations": 2, "chain_steps": 2})

    def draw(*indices: int) -> tuple[torch.Tensor, torch.Tensor]:
        out = pipe.sample(indices, 11, sampler, soft_label)
        return out.images, out.soft_labels

    alone, many = draw(7), draw(3, 9, 7, 1, 0, 7)
    for one, several in zip(alone, many, strict=True):
        assert torch.equal(one[0], several[2])  # other neighbours, another place
        assert torch.equal(one[0], several[5])  # another micro-batch, padded
        assert not torch.equal(one[0], several[0])


def _listener(table: torch.Tensor) -> tuple[Denoiser, list[torch.Tensor]]:
    """A denoiser that notes what it is told."""
    seen: list[torch.Tensor] = []

    def network(
        x: torch.Tensor, y: torch.Tensor, t_x: torch.Tensor, t_y: torch.Tensor, told: torch.Tensor
    ) -> SimpleNamespace:
        seen.append(told)
        return SimpleNamespace(image=torch.zeros_like(x), logits=torch.zeros_like(y))

    return Denoiser(network, "x0", "ce", 0.4, CPU, table=table), seen


def test_a_sample_takes_the_descriptors_of_a_training_image_by_its_number() -> None:
    table = torch.arange(30.0).view(10, 3)
    denoiser, seen = _listener(table)

    def told(indices: list[int], seed: int = 0) -> torch.Tensor:
        seen.clear()
        scheduler = build_scheduler("dpmpp_2m", 1000)
        draw_pairs(
            denoiser, scheduler, 3, bands=1, num_classes=2, size=(8, 8), clean_t=0.01, seed=seed, indices=indices
        )
        assert len(seen) == 3
        assert all(torch.equal(one, seen[0]) for one in seen), "the same at every step"
        return seen[0]

    many = told(list(range(40)))
    assert torch.equal(told([5, 31]), many[[5, 31]])
    assert not torch.equal(told(list(range(40)), seed=1), many)
    assert {tuple(row) for row in many.tolist()} == {tuple(row) for row in table.tolist()}, "of 40 draws each of 10"


class _MapReader:
    """A network that notes what it sees of labels, and draws images that are the first class's label input."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, x: torch.Tensor, y: torch.Tensor, t_x: torch.Tensor, t_y: torch.Tensor) -> SimpleNamespace:
        self.seen.append((y.clone(), t_y.clone()))
        return SimpleNamespace(image=y[:, :1], logits=y)


def test_rows_with_a_label_map_see_it_at_every_step_and_the_others_do_not_notice() -> None:
    maps = np.full((3, 8, 8), IGNORE, np.uint8)
    maps[1], maps[1, 2:5], maps[1, 7] = 0, 1, IGNORE
    network = _MapReader()
    denoiser = Denoiser(network, "x0", "ce", 0.4, CPU)
    about: dict[str, Any] = {"bands": 1, "num_classes": 2, "size": (8, 8), "clean_t": 0.01, "seed": 3}
    images, soft = draw_pairs(denoiser, build_scheduler("ddim", 1000), 4, indices=[4, 5, 6], given=Given(maps), **about)
    levels = torch.stack([level for _, level in network.seen])
    assert torch.allclose(levels[:, 1], torch.tensor(0.01)), "the map is clean while the image is not yet"
    assert levels[:, 0].tolist() == levels[:, 2].tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25])
    first, *others = (y[1] for y, _ in network.seen)
    assert all(torch.equal(first, other) for other in others)
    clean = torch.full((2, 8, 8), -0.4)
    clean[0], clean[0, 2:5], clean[1, 2:5], clean[:, 7] = 0.4, -0.4, 0.4, 0.0
    assert float((first - clean).abs().max()) < 0.1, "the map itself, a little noisy; nothing where it is not known"
    assert torch.allclose(images[1], first[:1])
    assert torch.equal(soft[1].argmax(0)[:7], torch.from_numpy(maps[1, :7].astype(np.int64)))
    alone, _ = draw_pairs(denoiser, build_scheduler("ddim", 1000), 4, indices=[4, 6], **about)
    assert torch.equal(images[[0, 2]], alone)


def test_guidance_goes_on_from_what_is_drawn_without_the_map() -> None:
    maps = np.full((2, 8, 8), IGNORE, np.uint8)
    maps[1] = 1
    about: dict[str, Any] = {"bands": 1, "num_classes": 2, "size": (8, 8), "seed": 3, "indices": [4, 5], "clean_t": 0.0}

    def draw(guidance: float, clip: bool = False) -> torch.Tensor:
        denoiser = Denoiser(_MapReader(), "x0", "ce", 0.4, CPU, clip=clip)
        given = Given(maps, guidance=guidance)
        return draw_pairs(denoiser, build_scheduler("ddim", 1000), 4, given=given, **about)[0]

    weak, plain, strong = draw(0.5), draw(1.0), draw(3.0)
    free = 2 * weak - plain
    assert torch.allclose(plain[1], torch.tensor(-0.4), atol=1e-5), "the map's first class, which is not there"
    assert 0.7 < float(free[1].std()) < 1.3, "pure noise in the label's place"
    assert torch.allclose(strong[1], free[1] + 3 * (plain[1] - free[1]), atol=1e-5)
    assert torch.equal(strong[0], plain[0]), "rows without a map have nothing to follow"
    assert float(draw(3.0, clip=True).abs().max()) <= 1.0
    network = _MapReader()
    denoiser, given = Denoiser(network, "x0", "ce", 0.4, CPU), Given(maps, guidance=3.0)
    draw_pairs(denoiser, build_scheduler("ddim", 1000), 2, given=given, **about)
    levels = [t_y.tolist() for _, t_y in network.seen]
    assert levels == [[1.0, 0.0], [1.0, 1.0], [0.5, 0.0], [1.0, 1.0]], "p(x) is asked for beside each step"


def test_what_is_drawn_without_the_map_is_told_the_same() -> None:
    denoiser, seen = _listener(torch.arange(30.0).view(10, 3))
    about: dict[str, Any] = {"bands": 1, "num_classes": 2, "size": (8, 8), "seed": 0, "indices": [7], "clean_t": 0.01}
    given = Given(np.ones((1, 8, 8), np.uint8), np.full((1, 3), -5.0, np.float32), guidance=2.0)
    draw_pairs(denoiser, build_scheduler("dpmpp_2m", 1000), 2, given=given, **about)
    assert torch.stack(seen).eq(-5.0).all()
    assert len(seen) == 4


def test_images_for_label_maps_are_told_what_is_given_and_the_others_what_the_table_has() -> None:
    denoiser, seen = _listener(torch.arange(30.0).view(10, 3))
    about: dict[str, Any] = {
        "bands": 1,
        "num_classes": 2,
        "size": (8, 8),
        "clean_t": 0.01,
        "seed": 0,
        "indices": [7, 8, 9],
    }
    draw_pairs(denoiser, build_scheduler("dpmpp_2m", 1000), 2, **about)
    plain = seen[-1]
    maps = np.full((3, 8, 8), IGNORE, np.uint8)
    maps[1] = 1
    for descriptors, wanted in ((np.full((3, 3), -5.0, np.float32), torch.full((3,), -5.0)), (None, plain[1])):
        draw_pairs(denoiser, build_scheduler("dpmpp_2m", 1000), 2, given=Given(maps, descriptors), **about)
        assert torch.equal(seen[-1][[0, 2]], plain[[0, 2]])
        assert torch.equal(seen[-1][1], wanted)


def test_nothing_is_told_of_a_given_image_and_an_untrained_network_has_nothing_to_draw() -> None:
    denoiser, seen = _listener(torch.full((4, 3), torch.nan))
    clean = torch.rand(2, 1, 8, 8)
    about: dict[str, Any] = {"num_classes": 2, "clean_t": 0.01, "seed": 0, "indices": [0, 1], "turned": True}
    readout(denoiser, clean, evaluations=2, **about)
    chains(denoiser, build_scheduler("dpmpp_2m", 1000), clean, num_chains=2, steps=2, **about)
    assert len(seen) == 6
    assert all(torch.equal(told, torch.zeros(2, 3)) for told in seen)
    with pytest.raises(ConfigError, match="expected a trained one"):
        denoiser.draw_descriptors(0, "sample/descriptors", [0])


def test_another_micro_batch_shape_agrees_within_rounding() -> None:
    pipe = random_pipeline()
    small, large = (
        pipe.sample(range(6), 0, SamplerConfig(steps=4, micro_batch=size, precision="fp32"), SoftLabelConfig())
        for size in (2, 6)
    )
    assert torch.allclose(small.images, large.images, atol=1e-4)
    assert torch.allclose(small.soft_labels, large.soft_labels, atol=1e-4)


def test_seeds_and_ranges() -> None:
    pipe = random_pipeline()
    a, b = (pipe(batch_size=2, num_inference_steps=3, seed=seed) for seed in (0, 1))
    assert not torch.equal(a.images, b.images)
    assert float(a.images.abs().max()) <= 1
    assert np.allclose(a.soft_labels.sum(1), 1, atol=1e-5)
