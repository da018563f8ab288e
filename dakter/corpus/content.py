"""What one pair of a corpus is: classes, bands, size and value range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dakter.schema import ClassTable


@dataclass(frozen=True)
class Content:
    """What one pair of a corpus is.

    Attributes:
        class_table: the classes of the soft labels, in order.
        bands: names of the image bands, in order.
        height_px, width_px: tile size in pixels.
        value_range: raw value at stored 0 and at stored 255.
    """

    class_table: ClassTable
    bands: tuple[str, ...]
    height_px: int
    width_px: int
    value_range: tuple[float, float]

    def shapes(self, count: int) -> dict[str, tuple[int, int, int, int]]:
        """Shape of ``count`` samples of each array, by the array's name."""
        size = (self.height_px, self.width_px)
        return {"image": (count, len(self.bands), *size), "soft_label": (count, len(self.class_table), *size)}

    def to_json(self) -> dict[str, Any]:
        return {
            "class_table": self.class_table.to_json(),
            "bands": list(self.bands),
            "height_px": self.height_px,
            "width_px": self.width_px,
            "value_range": list(self.value_range),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Content:
        low, high = data["value_range"]
        return cls(
            ClassTable.from_json(data["class_table"]),
            tuple(data["bands"]),
            int(data["height_px"]),
            int(data["width_px"]),
            (float(low), float(high)),
        )
