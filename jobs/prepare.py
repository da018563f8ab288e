"""Prepare: images and labels of a source to a tile corpus, checked, split and described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dakter import storage
from dakter.data.build import prepare
from dakter.data.catalogue import SPLITS
from dakter.data.source import DataConfig, catalogue
from dakter.data.tiles import TilesConfig
from jobs._cli import Job, JobSettings, Plan, Stop, main


class PrepareSettings(JobSettings):
    """Where from, how tiled, where to."""

    data: DataConfig = DataConfig()
    tiles: TilesConfig = TilesConfig()


def run(settings: PrepareSettings, stop: Stop) -> Mapping[str, Any]:
    """Make the corpus, or find it standing."""
    url = settings.place("tiles")
    done = prepare(settings.data, settings.tiles, url, should_stop=stop)
    manifest = done.manifest
    figures = {
        "tiles": url,
        "tiles_digest": manifest.digest,
        "source": manifest.source,
        "class_names": list(manifest.class_table.names),
        "num_tiles": manifest.counts,
        "num_tiles_by_sensor": manifest.counts_by_sensor,
        "class_shares": manifest.class_shares,
        "image_rms": manifest.image_rms,
        "image_std": manifest.image_std,
        "b_rms": manifest.b_rms,
        "b_std": manifest.b_std,
        "tiles_mb": round(sum(storage.sizes(url).values()) / 1e6, 3),
        "leakage_pairs": manifest.leakage["num_pairs"],
        "num_dropped": manifest.leakage["num_dropped"],
    }
    if done.already_done:
        return {**figures, "already_done": True}
    return {**figures, "num_images": done.num_images, "images_per_second": round(done.images_per_second, 3)}


def plan(settings: PrepareSettings) -> Plan:
    """What a run would do; lists the source if it can be reached, opens no image."""
    data, tiles, url = settings.data, settings.tiles, settings.place("tiles")
    if storage.exists(storage.join(url, "manifest.json")):
        return Plan([f"{url}/manifest.json"], ["nothing if the settings are the same: a corpus stands"], [])
    if data.source != "simulate" and data.root is None:
        return Plan([f"{data.source}: data.root is not set; give --data.root DIR"], ["nothing before that"], [url])
    offer = catalogue(data)
    counts = {split: sum(entry.split == split for entry in offer.entries) for split in SPLITS}
    reads = [f"{offer.title}: {'nothing on disk' if data.source == 'simulate' else data.root}"]
    reads += [f"{count} images of {split}" for split, count in counts.items() if count]
    reads += [f"at fault: {fault}" for fault in offer.faults]
    window = f"windows of {tiles.window_px} px" if tiles.window_px else "windows of the images' shorter side"
    return Plan(
        reads=reads,
        computes=[
            "a check of every file before anything is written",
            "near-duplicates over 8 flips and rotations; val cut from train in whole groups",
            f"{window}, reduced to tiles of {tiles.size_px} px; b, RMS and standard deviation of train",
        ],
        writes=[
            f"{url}/{name}" for name in ("identity.json", "dev.zarr", "test.zarr", "samples.json", "manifest.json")
        ],
    )


JOB = Job(
    name="prepare",
    summary="Check images and labels, split them, and write tiles (zarr v3) with statistics and a leakage report.",
    settings=PrepareSettings,
    run=run,
    plan=plan,
)

if __name__ == "__main__":
    from jobs.prepare import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
