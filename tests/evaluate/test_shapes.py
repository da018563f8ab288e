import numpy as np
import pytest

from dakter.evaluate.shapes import Parts


def test_parts_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros((10, 10), bool)
    mask[1:3, 1:3] = mask[3:5, 3:5] = True
    mask[8, 8] = True
    found = Parts.of(mask)
    assert found.area_share == pytest.approx([0.08, 0.01])
    assert found.elongation[1] == pytest.approx(0)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (2, 8), (1, 9), (12, 3)])
def test_elongation_of_a_rectangle_is_one_less_its_sides_ratio(height: int, width: int) -> None:
    mask = np.zeros((20, 20), bool)
    mask[2 : 2 + height, 3 : 3 + width] = True
    found = Parts.of(mask)
    assert found.elongation == pytest.approx([1 - min(height, width) / max(height, width)])


def test_elongation_does_not_depend_on_direction() -> None:
    y, x = np.mgrid[-32:32, -32:32]
    for angle in np.linspace(0, np.pi, 7):
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        found = Parts.of((along / 24) ** 2 + (across / 8) ** 2 < 1)
        assert found.elongation == pytest.approx([1 - 8 / 24], abs=0.03)


def test_an_empty_map_has_no_parts() -> None:
    found = Parts.of(np.zeros((4, 4), bool))
    assert found.area_share.shape == found.elongation.shape == (0,)
