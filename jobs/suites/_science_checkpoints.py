"""Checkpoints of a generator in suite ``science``, in a local folder: the last one that is complete."""

from __future__ import annotations

from pathlib import Path

from dakter import storage


def latest(checkpoints: Path) -> Path | None:
    """The checkpoint of most steps that is complete (its state.json is written last, the folder renamed into place)."""
    found = sorted(path for path in checkpoints.glob("step-*") if (path / "state.json").is_file())
    return found[-1] if found else None


def keep_checkpoint(folder: Path, checkpoints: Path, step: int) -> None:
    """Copy a checkpoint to ``checkpoints/step-NNNNNNN``, in place at once or not at all, and drop older ones."""
    target = checkpoints / f"step-{step:07d}"
    partial = checkpoints / f"partial-{step:07d}"
    storage.remove_folder(str(partial))
    storage.upload_folder(folder, str(partial))
    if target.exists():
        storage.remove_folder(str(target))
    partial.rename(target)
    for old in checkpoints.glob("step-*"):
        if old != target:
            storage.remove_folder(str(old))
