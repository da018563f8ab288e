"""A training step as a CUDA graph: the same numbers as run plainly. On the CPU it is run plainly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dakter.captured import Captured


def _trained(device: str, *, capture: bool, steps: int = 8, dropout: float = 0.0) -> tuple[list[float], torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, 2, 3, padding=1)
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=device != "cpu")

    def differentiate(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = (model(x) - y).square().mean()
        torch.autograd.backward(loss)
        return loss.detach(), nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    gradients, losses = Captured(differentiate, model.parameters(), capture=capture), []
    for step in range(steps):
        torch.manual_seed(100 + step)
        batch = torch.randn(4, 3, 16, 16)
        loss, norm = gradients(batch[:, :1].to(device), batch[:, 1:].to(device))
        assert torch.isfinite(norm)
        optimizer.step()
        losses.append(float(loss))
    return losses, torch.cat([value.detach().flatten() for value in model.parameters()]).cpu()


def test_the_step_is_run_as_it_is_without_capture() -> None:
    losses, weights = _trained("cpu", capture=False)
    assert len(set(losses)) == 8
    assert losses[-1] < losses[0]
    assert torch.isfinite(weights).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_captured_step_gives_the_numbers_of_a_plain_one(dropout: float) -> None:
    plain_losses, plain = _trained("cuda", capture=False, dropout=dropout)
    losses, weights = _trained("cuda", capture=True, dropout=dropout)
    assert losses == pytest.approx(plain_losses, rel=1e-5)
    assert torch.allclose(weights, plain, atol=1e-5)
    again, _ = _trained("cuda", capture=True, dropout=dropout)
    assert again == pytest.approx(losses, rel=1e-5)
