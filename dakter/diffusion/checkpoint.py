"""A training checkpoint: a folder of safetensors files and, written last, ``state.json`` with their sha256.

``network``, ``ema`` and ``optimizer`` hold tensors; so does ``best``, where there is one: the averaged weights that val
chose so far. Everything else (step, history, settings) is JSON. Nothing is pickled. Noise and batches are functions of
(seed, step), so the step number is the whole random state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from dakter.errors import ConflictError, IntegrityError
from dakter.storage import to_json_bytes

FORMAT = "dakter joint diffusion checkpoint 1"
_PARTS = ("network", "ema", "optimizer")
_BEST = "best"


@dataclass(frozen=True)
class Checkpoint:
    """What stands in a checkpoint: named tensors of its parts (``best`` may be empty), and the JSON state."""

    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


def write_checkpoint(folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    """Write the parts of ``tensors`` (no empty ``best``) and then ``state`` into ``folder``, which must exist."""
    files = {}
    for part in (*_PARTS, *([_BEST] if tensors.get(_BEST) else [])):
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors[part].items()}
        data = save(plain)
        (folder / f"{part}.safetensors").write_bytes(data)
        files[f"{part}.safetensors"] = hashlib.sha256(data).hexdigest()
    (folder / "state.json").write_bytes(to_json_bytes({**state, "format": FORMAT, "files": files}))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        IntegrityError: it is not one of dakter's (pickles are never opened), is incomplete, or a byte was changed.
    """
    path = folder / "state.json"
    if not path.is_file():
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "nothing"
        raise IntegrityError(
            f"{folder}: no state.json ({found} is there); expected a checkpoint of this project with safetensors "
            "files. Remove it, or start without resuming"
        )
    try:
        state = json.loads(path.read_bytes())
        if state["format"] != FORMAT:
            raise IntegrityError(f"{folder}: format {state['format']!r}; expected {FORMAT!r}")
        files = dict(state["files"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, IntegrityError):
            raise
        raise IntegrityError(f"{path}: not a checkpoint's state ({error!r}); start without resuming") from error
    tensors: dict[str, dict[str, torch.Tensor]] = {_BEST: {}}
    for part in (*_PARTS, *([_BEST] if f"{_BEST}.safetensors" in files else [])):
        name = f"{part}.safetensors"
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise IntegrityError(f"{folder}: {name} cannot be read ({error}); start without resuming") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != files.get(name):
            raise IntegrityError(
                f"{folder / name}: sha256 {digest[:12]}.., recorded {str(files.get(name))[:12]}..; the file was "
                "altered or cut short: take an older checkpoint"
            )
        try:
            tensors[part] = load(data)
        except SafetensorError as error:
            raise IntegrityError(f"{folder / name}: not a safetensors file ({error})") from error
    return Checkpoint(tensors, state)


def differences(stands: Any, asked: Any, path: str = "") -> list[str]:
    """Where two trees of plain data differ, one line each: ``key: stands, asked``."""
    if isinstance(stands, dict) and isinstance(asked, dict):
        keys = sorted(stands.keys() | asked.keys())
        return [line for k in keys for line in differences(stands.get(k), asked.get(k), f"{path}.{k}".lstrip("."))]
    return [] if stands == asked else [f"{path}: {stands!r} stands, {asked!r} asked for"]


def check_same(stands: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Raise ConflictError naming every difference between two sets of plain settings."""
    lines = differences(dict(stands), json.loads(json.dumps(asked)))
    if lines:
        raise ConflictError(
            f"{where} was made with other settings:\n  " + "\n  ".join(lines) + "\nUse those settings or another place"
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """Adam's two moments by parameter name; before the first step there are none."""
    out = {}
    for name, value in zip(names, optimizer.param_groups[0]["params"], strict=True):
        moments = optimizer.state.get(value, {})
        out.update({f"{name}:{key}": moments[key] for key in ("exp_avg", "exp_avg_sq") if key in moments})
    return out


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, torch.Tensor], step: int
) -> None:
    """Inverse of ``optimizer_tensors``; ``step`` is the number of steps taken."""
    if step == 0:
        return
    for name, value in zip(names, optimizer.param_groups[0]["params"], strict=True):
        moments = {key: tensors[f"{name}:{key}"].to(value.device) for key in ("exp_avg", "exp_avg_sq")}
        kept = {
            key: torch.empty_like(value, memory_format=torch.preserve_format).copy_(m) for key, m in moments.items()
        }
        optimizer.state[value] = {"step": torch.tensor(float(step), device=value.device), **kept}
