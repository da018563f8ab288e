"""The joint model packaged as a segmenter: that it is the read-out of ``label``, and that its graph is the same."""

from __future__ import annotations

import pytest
import torch
from diffusion_toys import random_pipeline
from exported import round_trip

from dakter.diffusion.network import NetworkConfig
from dakter.diffusion.package import PackagedLabeller
from dakter.diffusion.sampler import Denoiser
from dakter.diffusion.softlabel import average_readout
from dakter.errors import ConfigError


def model_scale(raw: torch.Tensor) -> torch.Tensor:
    return raw / 127.5 - 1


def raw_images(*shape: int) -> torch.Tensor:
    return 255 * torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dihedral", [True, False])
def test_at_the_size_of_training_it_is_the_label_of_the_pipeline(dihedral: bool) -> None:
    pipe, raw = random_pipeline(dihedral=dihedral), raw_images(3, 1, 16, 16)
    with torch.no_grad():
        found = pipe.packaged(evaluations=8, seed=5)(raw)
    expected = pipe.label(model_scale(raw), evaluations=8, seed=5, indices=[0, 0, 0])
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    other = pipe.label(model_scale(raw), evaluations=8, seed=6, indices=[0, 0, 0])
    assert not torch.allclose(found, other, rtol=1e-3, atol=1e-4), "the noise matters, and it is that of the seed"


def test_at_odd_sizes_the_noise_repeats_and_the_edge_is_padded_and_cut() -> None:
    pipe, raw = random_pipeline(dihedral=True), raw_images(2, 1, 21, 34)
    package = pipe.packaged(evaluations=3, seed=5)
    padded = torch.nn.functional.pad(model_scale(raw), (0, 2, 0, 3), mode="replicate")  # to multiples of 4
    asked: list[tuple[int, int]] = []

    def image_noise(draw: int, height: int, width: int) -> torch.Tensor:
        return package.image_noise[draw].repeat(1, 3, 3)[None, :, :height, :width]

    def label_noise(draw: int, height: int, width: int) -> torch.Tensor:
        asked.append((height, width))
        return package.label_noise[draw].repeat(1, 3, 3)[None, :, :height, :width]

    with torch.no_grad():
        found = package(raw)
        expected = average_readout(
            Denoiser(pipe.unet, "v", "ce", 0.4, torch.device("cpu"), table=pipe.unet.table),
            padded,
            image_noise=image_noise,
            label_noise=label_noise,
            clean_t=0.01,
            evaluations=3,
            turned=True,
        )
    assert asked == [(24, 36), (36, 24), (24, 36)], "the second evaluation is a quarter turn"
    torch.testing.assert_close(found, expected[..., :21, :34], rtol=1e-4, atol=1e-6)


def test_the_answer_is_the_same_every_time_whatever_else_is_in_the_batch() -> None:
    pipe, raw = random_pipeline(), raw_images(3, 1, 18, 20)
    package, again = pipe.packaged(2), pipe.packaged(2)
    torch.manual_seed(1)
    with torch.no_grad():
        first = package(raw)
        torch.manual_seed(2)
        assert torch.equal(package(raw), first)
        assert torch.equal(again(raw), first)
        torch.testing.assert_close(package(raw[1:2]), first[1:2], rtol=1e-4, atol=1e-6)
        clipped = torch.where(raw > 200, raw + 900, raw)  # beyond value_range
        torch.testing.assert_close(package(clipped), package(torch.where(raw > 200, 255.0, raw)))


def test_temperature_is_a_power_of_the_probabilities() -> None:
    pipe, raw = random_pipeline(), raw_images(1, 1, 16, 16)
    with torch.no_grad():
        plain, warm = pipe.packaged(2)(raw), pipe.packaged(2, temperature=2.0)(raw)
    torch.testing.assert_close(warm, plain.sqrt() / plain.sqrt().sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("attention", "descriptors"), [(False, False), (False, True), (True, True)])
def test_the_exported_graph_is_the_package_at_every_size(attention: bool, descriptors: bool) -> None:
    """Attention is traced as Mix Transformers are: the graph then wants images larger than the stride."""
    network = NetworkConfig(widths=(8, 16), blocks=(1, 1), attention=attention, descriptors=descriptors)
    package = random_pipeline(dihedral=True, network=network).packaged(evaluations=2, temperature=1.3)
    graph = round_trip(package, oblivious=not attention)
    for shape in [(1, 1, 16, 16), (3, 1, 17, 50), (2, 1, 37, 24), *([] if attention else [(1, 1, 3, 1)])]:
        raw = raw_images(*shape)
        with torch.no_grad():
            found, expected = graph(raw), package(raw)
        assert found.shape == (shape[0], 2, *shape[2:])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sum(1), torch.ones(shape[0], *shape[2:]))


def test_it_tells_what_it_is_and_what_it_costs() -> None:
    pipe = random_pipeline(dihedral=True)
    package = pipe.packaged(evaluations=4, seed=3, temperature=1.5)
    assert isinstance(package, PackagedLabeller)
    facts = package.metadata()
    assert (facts["bands"], facts["class_names"]) == (["vv"], list(pipe.class_table.names))
    assert (facts["value_range"], facts["stride"], facts["temperature"]) == ([0.0, 255.0], 4, 1.5)
    assert (facts["evaluations"], facts["noise_seed"], facts["noise_period_px"], facts["turned"]) == (4, 3, 16, True)
    weights = sum(value.numel() for value in pipe.unet.parameters())
    assert package.num_parameters == weights
    assert package.requires_grad_(False).num_parameters == weights  # a limit on weights is not got round so


def test_a_package_keeps_its_weights() -> None:
    pipe, raw = random_pipeline(), raw_images(1, 1, 16, 16)
    package = pipe.packaged(1)
    with torch.no_grad():
        before = package(raw)
        pipe.unet.out.weight.mul_(0.5)
        assert torch.equal(package(raw), before)


def test_what_cannot_be_a_segmenter_is_refused() -> None:
    with pytest.raises(ConfigError, match="mode independent; this one has mode joint"):
        random_pipeline(mode="joint").packaged()
    with pytest.raises(ConfigError, match="evaluations is 0; expected at least 1"):
        random_pipeline().packaged(evaluations=0)
    with pytest.raises(ConfigError, match="temperature"):
        random_pipeline().packaged(temperature=0)
