from __future__ import annotations

import numpy as np
import pytest
import torch

from dakter.config import load
from dakter.diffusion.schedule import (
    DiffusionConfig,
    add_noise,
    alpha_sigma,
    build_scheduler,
    continuous_t,
    draw_levels,
    set_steps,
)
from dakter.errors import ConfigError

NAMES = ("dpmpp_2m", "ddim", "ddpm")


def test_ends_are_exact_and_power_is_kept() -> None:
    alpha, sigma = alpha_sigma(torch.tensor([0.0, 0.3, 1.0]))
    assert [float(a) for a in (alpha[0], sigma[0], alpha[2], sigma[2])] == [1.0, 0.0, 0.0, 1.0]
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(3), atol=1e-7)


def test_pure_noise_carries_nothing_of_the_clean_value() -> None:
    noise = torch.randn(2, 2, 4, 4)
    one = torch.ones(2)
    assert torch.equal(add_noise(torch.full_like(noise, 3e4), noise, one), noise)


@pytest.mark.parametrize("name", NAMES)
def test_discrete_levels_are_those_told_to_the_network(name: str) -> None:
    scheduler = build_scheduler(name, 1000)  # type: ignore[arg-type]
    timesteps = set_steps(scheduler, 20)
    assert continuous_t(timesteps[0], 1000) == 1.0
    alpha, _ = alpha_sigma(torch.tensor([continuous_t(i, 1000) for i in range(1000)]))
    found = scheduler.alphas_cumprod.sqrt()
    assert torch.allclose(found[:-1], alpha[:-1], rtol=2e-5, atol=1e-6)
    assert float(found[-1]) <= 2**-12


def test_ddim_refuses_strides_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="divisor of 1000"):
        set_steps(build_scheduler("ddim", 1000), 30)
    with pytest.raises(ConfigError, match="1 to 1000"):
        set_steps(build_scheduler("dpmpp_2m", 1000), 1001)


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(ConfigError, match="share_equal"):
        load(DiffusionConfig, {"share_equal": 0.9})


def test_levels_follow_the_shares() -> None:
    config = DiffusionConfig()
    draws = np.random.default_rng(0)
    levels = np.array([draw_levels(config, draws, labelled=True) for _ in range(8000)])
    t_x, t_y = levels.T
    image_clean, label_clean = (t_x == config.clean_t) & (t_y == 1), t_y == config.clean_t
    assert abs(float((t_x == t_y).mean()) - 0.5) < 0.02
    assert abs(float(image_clean.mean()) - 0.15) < 0.015
    assert abs(float(label_clean.mean()) - 0.05) < 0.01
    apart = (t_x != t_y) & ~image_clean & ~label_clean
    assert abs(float(apart.mean()) - 0.3) < 0.02
    assert abs(float(np.corrcoef(t_x[apart], t_y[apart])[0, 1])) < 0.06


def test_joint_mode_has_one_level_and_unlabelled_rows_an_unknown_label() -> None:
    draws = np.random.default_rng(0)
    joint = DiffusionConfig(mode="joint")
    assert all(a == b for a, b in (draw_levels(joint, draws, labelled=True) for _ in range(200)))
    assert all(draw_levels(DiffusionConfig(), draws, labelled=False)[1] == 1.0 for _ in range(200))
