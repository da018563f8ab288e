"""Whether pairs and tiles go together."""

from __future__ import annotations

from dakter.corpus.content import Content
from dakter.data.tiles import TilesManifest


def differences_of(content: Content, manifest: TilesManifest) -> list[str]:
    """In what pairs and tiles differ of classes, bands, size and range of values, in words; empty if they fit."""
    there = (content.class_table, content.bands, content.height_px, content.width_px, content.value_range)
    here = (manifest.class_table, manifest.bands, manifest.tile_px, manifest.tile_px, manifest.value_range)
    names = ("classes", "bands", "rows", "columns", "range of values")
    return [f"{name} {a} and {b}" for name, a, b in zip(names, there, here, strict=True) if a != b]
