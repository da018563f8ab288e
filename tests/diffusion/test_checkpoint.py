from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from diffusion_toys import kept_checkpoints, run_fit, unpack

from dakter.diffusion.checkpoint import read_checkpoint, write_checkpoint
from dakter.errors import IntegrityError


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    kept: list[dict[str, bytes]] = []
    run_fit(on_checkpoint=kept_checkpoints(kept))
    return kept[-1]


def test_it_holds_safetensors_and_json_alone(files: dict[str, bytes]) -> None:
    assert sorted(files) == ["ema.safetensors", "network.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("name", ["ema.safetensors", "network.safetensors", "optimizer.safetensors"])
def test_a_changed_byte_is_found(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    data = bytearray(files[name])
    data[-5] ^= 1
    with pytest.raises(IntegrityError, match=name):
        read_checkpoint(unpack({**files, name: bytes(data)}, tmp_path / "c"))
    missing = {key: value for key, value in files.items() if key != name}
    with pytest.raises(IntegrityError, match=name):
        read_checkpoint(unpack(missing, tmp_path / "d"))


def test_foreign_folders_and_pickles_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (ran,))

    bomb = pickle.dumps(Bomb())
    with pytest.raises(IntegrityError, match=r"no state\.json"):
        read_checkpoint(unpack({"checkpoint.pt": bomb}, tmp_path / "a"))
    with pytest.raises(IntegrityError, match="not a checkpoint"):
        read_checkpoint(unpack({**files, "state.json": bomb}, tmp_path / "b"))
    state = json.loads(files["state.json"])
    state["format"] = "somebody's"
    with pytest.raises(IntegrityError, match="somebody's"):
        read_checkpoint(unpack({**files, "state.json": json.dumps(state).encode()}, tmp_path / "c"))
    import hashlib

    state = json.loads(files["state.json"])
    state["files"]["ema.safetensors"] = hashlib.sha256(bomb).hexdigest()
    forged = {**files, "ema.safetensors": bomb, "state.json": json.dumps(state).encode()}
    with pytest.raises(IntegrityError, match="not a safetensors file"):
        read_checkpoint(unpack(forged, tmp_path / "d"))
    assert not ran.exists()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {part: {"w": torch.randn(2, 3)} for part in ("network", "ema", "optimizer")}
    write_checkpoint(tmp_path, tensors, {"step": 3})
    back = read_checkpoint(tmp_path)
    assert back.state["step"] == 3
    assert all(torch.equal(back.tensors[part]["w"], tensors[part]["w"]) for part in tensors)
