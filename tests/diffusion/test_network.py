from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusion_toys import PLAIN, random_pipeline, run_fit, toy_data
from torch.utils.flop_counter import FlopCounterMode

from dakter.diffusion.balance import enter_labels
from dakter.diffusion.fit import TrainConfig
from dakter.diffusion.network import JointUNet, NetworkConfig, describe
from dakter.diffusion.schedule import add_noise
from dakter.errors import ConfigError
from dakter.turns import turn


def test_shapes_and_work_of_the_small_network() -> None:
    unet = JointUNet.build(NetworkConfig(), 1, 5)
    x, y, t = torch.randn(2, 1, 64, 64), torch.randn(2, 5, 64, 64), torch.rand(2)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        out = unet(x, y, t, t)
    assert out.image.shape == x.shape
    assert out.logits.shape == y.shape
    assert flops.get_total_flops() / 2 < 1.15e9  # per image


def test_an_unknown_label_does_not_leak() -> None:
    unet = random_pipeline(network=PLAIN).unet
    x, noise, t_x, one = torch.randn(2, 1, 16, 16), torch.randn(2, 2, 16, 16), torch.rand(2), torch.ones(2)
    maps = [torch.zeros(2, 16, 16), torch.ones(2, 16, 16)]
    clean = [enter_labels(labels.to(torch.uint8), 2, 0.4) for labels in maps]
    with torch.no_grad():
        at_one = [unet(x, add_noise(y, noise, one), t_x, one) for y in clean]
        below = [unet(x, add_noise(y, noise, one * 0.99), t_x, one * 0.99) for y in clean]
    assert torch.equal(at_one[0].logits, at_one[1].logits)
    assert torch.equal(at_one[0].image, at_one[1].image)
    assert not torch.equal(below[0].logits, below[1].logits)  # so the network does look at its label input


def test_it_is_told_both_levels() -> None:
    unet = random_pipeline(network=PLAIN).unet
    x, y, half, one = torch.randn(1, 1, 16, 16), torch.randn(1, 2, 16, 16), torch.full((1,), 0.5), torch.ones(1)
    with torch.no_grad():
        a, b, c = (unet(x, y, *levels).logits for levels in ((half, half), (one, half), (half, one)))
    assert not torch.allclose(a, b)
    assert not torch.allclose(a, c)
    assert not torch.allclose(b, c)


def test_descriptors_are_those_of_the_image_however_it_is_turned() -> None:
    x = torch.rand(4, 2, 12, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    x[1] = 0.25  # without contrast
    found = describe(x)
    assert found.shape == (4, 6)
    plain = x.numpy().astype(np.float64)
    down, right = (np.diff(plain, axis=axis) for axis in (2, 3))
    rough = np.sqrt(((down**2).sum((2, 3)) + (right**2).sum((2, 3))) / (2 * 12 * 16))
    wanted = [plain.mean((2, 3)), np.log(plain.std((2, 3)) + 0.01), np.log(rough + 0.01)]
    assert np.allclose(found.numpy(), np.concatenate(wanted, axis=1), atol=1e-5)
    for which in range(8):
        assert torch.allclose(describe(turn(x, which)), found, atol=1e-6)
    assert describe(x[:, :, :1, :1]).isfinite().all()


def test_every_descriptor_shows_in_both_outputs() -> None:
    unet = random_pipeline().unet
    x, y, t = torch.randn(1, 1, 16, 16), torch.randn(1, 2, 16, 16), torch.full((1,), 0.5)
    told = torch.tensor([[0.1, -1.0, -2.0]])
    with torch.no_grad():
        as_told = unet(x, y, t, t, told)
        for place in range(3):
            other = told.clone()
            other[0, place] += 0.5
            found = unet(x, y, t, t, other)
            assert not torch.allclose(found.image, as_told.image)
            assert not torch.allclose(found.logits, as_told.logits)
        with pytest.raises(AssertionError, match="for a network that is told them"):
            unet(x, y, t, t)
        with pytest.raises(AssertionError, match="for a network that is told them"):
            random_pipeline(network=PLAIN).unet(x, y, t, t, told)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"network\.blocks"):
        JointUNet.build(NetworkConfig(widths=(8, 16), blocks=(1,)), 1, 2)
    with pytest.raises(ConfigError, match=r"network\.widths"):
        JointUNet.build(NetworkConfig(widths=(9,), blocks=(1,)), 1, 2)
    with pytest.raises(ConfigError, match="multiples of 8 px"):
        JointUNet.build(NetworkConfig(), 1, 2).check_size(64, 60)


def test_a_gpu_sized_network_trains_two_steps_at_256_px() -> None:
    network = NetworkConfig(widths=(32, 64, 96, 128), blocks=(1, 2, 2, 2), attention=True, dropout=0.1)
    train = TrainConfig(steps=2, batch_size=1, unlabelled_share=0.0)
    result = run_fit(train, network=network, data=toy_data(unlabelled=False, size=256))
    assert result.steps == 2
