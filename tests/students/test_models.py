"""Networks, their up-front check, prediction, and students at rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dakter import storage
from dakter.config import load
from dakter.errors import ConfigError, IntegrityError
from dakter.students.models import (
    Architecture,
    StudentConfig,
    build,
    check_pairs,
    encode,
    num_parameters,
    predict,
)
from dakter.students.store import load_student, read_record, save_student

SMALL = StudentConfig(architecture="PSPNet", encoder="tu-mobilenetv3_small_100")


def test_settings_that_came_later_are_written_only_where_they_are_on() -> None:
    """The digest of a student's settings stands in records and folders made before there were those."""
    assert StudentConfig().digest() == "9d99602dc7d5d11b3d3f7bf7f0ba7ea5f9e12f9155813d67bce99c4cd8c1b25b"
    on = {"final_share": 0.0, "confidence_gamma": 1.0, "consistency_weight": 2.0}
    assert set(on) == set(StudentConfig.later)
    before = StudentConfig(synthetic_share=0.5).dump()
    assert not set(before) & set(on)
    for name, value in on.items():
        student = StudentConfig.model_validate({**before, name: value})
        assert student.dump() == {**before, name: value}
        assert load(StudentConfig, student.dump()) == student
    assert load(StudentConfig, before) == StudentConfig(synthetic_share=0.5)


def test_check_names_every_bad_pair_and_only_those() -> None:
    with pytest.raises(ConfigError) as caught:
        check_pairs(
            [("Unet", "resnet18"), ("UnetPlusPlus", "mit_b0"), ("FPN", "resnet-18")], weights=None, bands=1, size_px=64
        )
    text = str(caught.value)
    assert "2 of 3" in text
    assert "UnetPlusPlus" in text
    assert "resnet-18" in text
    assert "student Unet " not in text


def test_check_refuses_tiles_that_a_network_cannot_take() -> None:
    with pytest.raises(ConfigError, match="60"):
        check_pairs([("PSPNet", "resnet18")], weights=None, bands=1, size_px=60)
    check_pairs([("PSPNet", "resnet18"), ("Segformer", "mit_b0")], weights=None, bands=2, size_px=64)


def test_predict_gives_probabilities_whatever_the_batch() -> None:
    torch.manual_seed(0)
    model = build(SMALL, 2, 5)
    images = np.random.default_rng(0).integers(0, 65536, (5, 2, 32, 32), dtype=np.uint16)
    one = predict(model, images, batch=2)
    assert one.shape == (5, 5, 32, 32)
    assert one.dtype == np.float32
    np.testing.assert_allclose(one.sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(one, predict(model, images, batch=5), atol=1e-5)
    assert not model.training


@pytest.mark.parametrize(
    ("architecture", "encoder", "width"), [("Unet", "resnet18", 512), ("Segformer", "mit_b0", 256)]
)
def test_features_are_the_mean_of_the_deepest_map_whatever_the_batch(
    architecture: Architecture, encoder: str, width: int
) -> None:
    torch.manual_seed(0)
    model = build(StudentConfig(architecture=architecture, encoder=encoder), 1, 2)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 64, 64), dtype=np.uint8)
    found = encode(model, images, batch=2)
    assert found.shape == (3, width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, encode(model, images, batch=3), atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0
    assert not model.training


@pytest.mark.parametrize("remote", [False, True])
def test_student_comes_back_equal_and_altered_weights_are_noticed(
    tmp_path: Path, remote: bool, request: pytest.FixtureRequest
) -> None:
    url = f"{request.getfixturevalue('s3_bucket')}/student" if remote else str(tmp_path / "student")
    model = build(SMALL, 1, 2).eval()
    assert read_record(url) is None
    with pytest.raises(FileNotFoundError, match="distill"):
        load_student(url)
    digest = save_student(url, model, SMALL, 1, 2, {"note": 1})
    back = load_student(url)
    assert (back.digest, back.config, back.record, back.bands, back.num_classes) == (digest, SMALL, {"note": 1}, 1, 2)
    assert not back.model.training
    assert num_parameters(back.model) == num_parameters(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, back.model.state_dict()[name])
    data = bytearray(storage.read_bytes(f"{url}/weights.safetensors"))
    data[-1] ^= 1
    storage.put(f"{url}/weights.safetensors", bytes(data))
    with pytest.raises(IntegrityError, match="altered"):
        load_student(url)
