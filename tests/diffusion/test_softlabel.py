from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusion_toys import random_pipeline

from dakter.diffusion.label_maps import Given
from dakter.diffusion.sampler import Denoiser, SamplerConfig
from dakter.diffusion.schedule import build_scheduler
from dakter.diffusion.softlabel import SoftLabelConfig, chains, readout
from dakter.errors import ConfigError, DataError
from dakter.schema import IGNORE

CPU = torch.device("cpu")


def test_readout_asks_for_the_label_of_a_clean_image_with_nothing_known() -> None:
    asked: list[tuple[float, float]] = []
    x = torch.rand(2, 1, 8, 8)

    def network(x_t: torch.Tensor, y: torch.Tensor, t_x: torch.Tensor, t_y: torch.Tensor) -> SimpleNamespace:
        asked.append((float(t_x[0]), float(t_y[0])))
        assert float((x_t - x).abs().max()) < 0.1
        assert 0.7 < float(y.std()) < 1.3
        return SimpleNamespace(image=x_t, logits=y)

    denoiser = Denoiser(network, "x0", "ce", 0.4, CPU)
    soft = readout(denoiser, x, num_classes=3, clean_t=0.01, evaluations=3, seed=0, indices=[4, 5])
    assert [t for pair in asked for t in pair] == pytest.approx([0.01, 1.0] * 3)
    assert soft.shape == (2, 3, 8, 8)
    assert torch.allclose(soft.sum(1), torch.ones(2, 8, 8), atol=1e-6)
    one = readout(denoiser, x, num_classes=3, clean_t=0.01, evaluations=1, seed=0, indices=[4, 5])
    assert float(soft.var()) < float(one.var())  # an average of draws


def test_chains_average_whole_label_chains() -> None:
    levels: list[float] = []

    def network(x_t: torch.Tensor, y: torch.Tensor, t_x: torch.Tensor, t_y: torch.Tensor) -> SimpleNamespace:
        levels.append(float(t_y[0]))
        logits = torch.stack([y[:, 0] * 0, (y[:, 1] - y[:, 0]) * 50], 1)  # each chain keeps the side it starts on
        return SimpleNamespace(image=x_t, logits=logits)

    denoiser = Denoiser(network, "x0", "ce", 0.4, CPU)
    soft = chains(
        denoiser,
        build_scheduler("dpmpp_2m", 1000),
        torch.zeros(2, 1, 16, 16),
        num_classes=2,
        clean_t=0.01,
        num_chains=8,
        steps=4,
        seed=0,
        indices=[0, 1],
    )
    assert levels == pytest.approx([1.0, 0.75, 0.5, 0.25] * 8)
    assert float(soft[:, 1].mean()) == pytest.approx(0.5, abs=0.05)
    assert float(soft[:, 1].std()) == pytest.approx((0.25 / 8) ** 0.5, abs=0.05)  # binomial over 8 chains


def test_the_papers_joint_model_has_no_readout() -> None:
    pipe = random_pipeline("joint")
    with pytest.raises(ConfigError, match="mode joint"):
        pipe.sample([0], 0, SamplerConfig(steps=2), SoftLabelConfig(mode="readout"))
    with pytest.raises(ConfigError, match="mode joint"):
        pipe.label(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ConfigError, match="mode joint"):
        pipe.render(np.zeros((1, 16, 16), np.uint8))
    assert pipe(batch_size=1, num_inference_steps=2).soft_labels.shape == (1, 2, 16, 16)  # the last step


def test_label_and_render_check_their_input_and_keep_to_their_numbers() -> None:
    pipe = random_pipeline()
    images = torch.rand(3, 1, 32, 16) - 0.5
    soft = pipe.label(images, evaluations=2, seed=1)
    assert soft.shape == (3, 2, 32, 16)
    again = pipe.label(images[2:], evaluations=2, seed=1, indices=[2])
    assert torch.equal(again[0], soft[2])
    maps = np.zeros((2, 16, 16), np.uint8)
    maps[1, 4:8] = 1
    a, b = pipe.render(maps, seed=1, indices=[5, 5], sampler=SamplerConfig(steps=3, precision="fp32"))
    assert not torch.equal(a, b)  # the same noise, another label map
    maps[0] = IGNORE
    fast = SamplerConfig(steps=3, precision="fp32")
    once, more = (pipe.render(maps, seed=1, indices=[5, 6], sampler=fast, guidance=g) for g in (1.0, 3.0))
    assert torch.equal(once[0], more[0]), "without a map there is nothing to follow"
    assert not torch.equal(once[1], more[1])
    with pytest.raises(DataError, match="expected float"):
        pipe.label(torch.zeros(1, 2, 16, 16))
    with pytest.raises(DataError, match="expected uint8"):
        pipe.render(np.zeros((1, 16, 16), np.int64))


@pytest.mark.parametrize("mode", ["readout", "last_step"])
def test_the_label_of_an_image_for_a_map_is_the_map_or_that_of_the_image(mode: str) -> None:
    pipe, sampler = random_pipeline(), SamplerConfig(steps=2, precision="fp32", micro_batch=2)
    asked = SoftLabelConfig.model_validate({"mode": mode, "evaluations": 2})
    maps = np.full((3, 16, 16), IGNORE, np.uint8)
    maps[1], maps[1, 4:8], maps[1, 12:] = 0, 1, IGNORE
    by_map, by_image = (
        pipe.sample([0, 1, 2], 1, sampler, asked, Given(maps, labels=labels)) for labels in (True, False)
    )
    assert torch.equal(by_map.images, by_image.images)
    known = torch.from_numpy(maps[1] != IGNORE)
    wanted = torch.nn.functional.one_hot(torch.from_numpy(maps[1] == 1).long(), 2).movedim(-1, 0).float()
    assert torch.equal(by_map.soft_labels[1][:, known], wanted[:, known])
    assert torch.equal(by_map.soft_labels[1][:, ~known], by_image.soft_labels[1][:, ~known]), "where it is not known"
    assert torch.equal(by_map.soft_labels[[0, 2]], by_image.soft_labels[[0, 2]])
    if mode == "readout":
        alone = pipe.label(by_image.images[1:2], 2, 1, indices=[1], sampler=sampler)
        torch.testing.assert_close(by_image.soft_labels[1:2], alone)
    else:
        assert torch.equal(by_image.soft_labels, by_map.soft_labels), "the last step knows nothing but its input"


def test_given_images_are_labelled_by_chains_where_asked_as_generated_ones_are() -> None:
    pipe, sampler = random_pipeline(), SamplerConfig(steps=2, precision="fp32", micro_batch=2)
    asked = SoftLabelConfig(mode="chains", evaluations=3, chain_steps=2)
    generated = pipe.sample([0, 1, 2], 1, sampler, asked)
    soft = pipe.label(generated.images, seed=1, sampler=sampler, soft_label=asked)
    torch.testing.assert_close(soft, generated.soft_labels)
    readout = SoftLabelConfig(mode="readout", evaluations=3)
    plain = pipe.label(generated.images, evaluations=3, seed=1)
    assert torch.equal(pipe.label(generated.images, evaluations=5, seed=1, soft_label=readout), plain)
    assert not torch.allclose(soft, plain, atol=1e-3)
    with pytest.raises(ConfigError, match="last_step is the label of an image while it is generated"):
        pipe.label(generated.images, soft_label=SoftLabelConfig(mode="last_step"))
