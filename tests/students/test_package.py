"""The package around a student: what it does to raw images, and that its exported graph does the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exported import round_trip

from dakter.errors import ConfigError, DataError
from dakter.students.models import Architecture, StudentConfig, build, predict
from dakter.students.package import PackagedStudent, stride_of

# Mix Transformers trace the other way round (see dakter.tracking): their graphs want images larger than the stride.
ARCHITECTURES: list[tuple[Architecture, str, bool]] = [
    ("Unet", "resnet18", True),
    ("UnetPlusPlus", "resnet18", True),
    ("DeepLabV3Plus", "resnet18", True),
    ("FPN", "resnet18", True),
    ("Segformer", "mit_b0", False),
    ("PSPNet", "resnet18", True),
    ("Linknet", "resnet18", True),
]


def package(architecture: Architecture, encoder: str, temperature: float = 1.3) -> PackagedStudent:
    torch.manual_seed(0)
    network = build(StudentConfig(architecture=architecture, encoder=encoder), 1, 3).eval()
    names = ["sea", "oil", "ship"]
    return PackagedStudent(
        network,
        value_range=(-25.0, 0.0),
        bands=["VV"],
        class_names=names,
        stride=stride_of(network),
        temperature=temperature,
    ).eval()


@pytest.mark.parametrize(("architecture", "encoder", "small"), ARCHITECTURES)
def test_exported_graph_is_the_network_at_every_size(architecture: Architecture, encoder: str, small: bool) -> None:
    eager = package(architecture, encoder)
    graph = round_trip(eager, oblivious=small)
    for shape in [(1, 1, 64, 64), (3, 1, 65, 50), (2, 1, 37, 96), *([(1, 1, 32, 31)] if small else [])]:
        raw = torch.rand(shape) * 40 - 32
        with torch.no_grad():
            found, expected = graph(raw), eager(raw)
        assert found.shape == (shape[0], 3, *shape[2:])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sum(1), torch.ones(shape[0], *shape[2:]))


def test_raw_values_are_what_the_student_was_trained_on() -> None:
    """At a multiple of the stride and temperature 1 it is ``predict`` on the stored image, values clipped."""
    eager = package("Linknet", "resnet18", temperature=1.0)
    stored = np.random.default_rng(0).integers(0, 256, (2, 1, 64, 96), dtype=np.uint8)
    raw = torch.from_numpy(stored.astype(np.float32) / 255 * 25 - 25)
    raw[stored == 255] += 7.0  # beyond the range: clipped
    with torch.no_grad():
        found = eager(raw).numpy()
    np.testing.assert_allclose(found, predict(eager.network, stored), atol=2e-5)


def test_padding_repeats_the_edge_and_is_cut_away() -> None:
    class Columns(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-2:] == (8, 12)
            torch.testing.assert_close(x[..., 5:, :], x[..., 4:5, :].expand_as(x[..., 5:, :]))
            torch.testing.assert_close(x[..., 9:], x[..., 8:9].expand_as(x[..., 9:]))
            return torch.cat([x, -x], 1)

    module = PackagedStudent(Columns(), value_range=(0, 1), bands=["a"], class_names=["p", "q"], stride=4)
    raw = torch.rand(2, 1, 5, 9)
    torch.testing.assert_close(module(raw)[:, :1], torch.sigmoid(2 * (2 * raw - 1)))


def test_temperature_and_metadata() -> None:
    warm, cold = package("Linknet", "resnet18", 2.0), package("Linknet", "resnet18", 1.0)
    raw = cold.example()
    with torch.no_grad():
        softened = cold(raw) ** 0.5
        torch.testing.assert_close(warm(raw), softened / softened.sum(1, keepdim=True))
    assert raw.shape[0] == 2
    assert raw.shape[2] % 32
    assert raw.shape[3] % 32
    assert float(raw.min()) == -25.0
    assert float(raw.max()) == 0.0
    facts = warm.metadata()
    assert facts["value_range"] == [-25.0, 0.0]
    assert (facts["bands"], facts["class_names"]) == (["VV"], ["sea", "oil", "ship"])
    assert (facts["temperature"], facts["stride"]) == (2.0, 32)


def test_wrong_settings_are_told() -> None:
    with pytest.raises(ConfigError, match="value_range"):
        PackagedStudent(torch.nn.Identity(), value_range=(1, 1), bands=[], class_names=[], stride=1)
    with pytest.raises(ConfigError, match="temperature"):
        PackagedStudent(torch.nn.Identity(), value_range=(0, 1), bands=[], class_names=[], stride=1, temperature=0)
    with pytest.raises(DataError, match="output_stride"):
        stride_of(torch.nn.Identity())
