"""Figures, pictures and words by themselves."""

from __future__ import annotations

import base64
import io
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from dakter.report import figures, overview, pictures
from dakter.report.figures import Curve, Interval
from dakter.report.svg import Scale, side_by_side, tag
from dakter.report.texture import compare_speckle
from dakter.report.verdict import direction, signed
from dakter.rng import numpy_rng
from dakter.schema import IGNORE, OSD, SOS


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB"))


def test_pictures_show_what_they_are_given() -> None:
    label = np.array([[0, 1], [2, IGNORE]], np.uint8)
    shown = decode(pictures.class_map(label, OSD))
    assert shown[0, 1].tolist() == [0, 255, 255]
    assert shown[1, 0].tolist() == [255, 0, 0]
    assert shown[1, 1].tolist() == [140, 140, 140]
    wide = np.array([[[0, 65535], [257 * 7, 300]]], np.uint16)
    assert decode(pictures.image(wide))[..., 0].tolist() == [[0, 255], [7, 1]]
    half = np.full((2, 1, 1), 0.5, np.float32)
    assert decode(pictures.soft_label(half, SOS))[0, 0].tolist() == [0, 128, 128]
    assert decode(pictures.entropy(half))[0, 0].tolist() == list(pictures.rgb(pictures.CIVIDIS[-1]))


def test_entropy_is_in_nats() -> None:
    p = np.array([[1, 0.25], [0, 0.75]], np.float32).reshape(2, 1, 2)
    expected = [0.0, -0.25 * math.log(0.25) - 0.75 * math.log(0.75)]
    assert pictures.entropy_nats(p)[0] == pytest.approx(expected, abs=1e-6)


def test_large_tiles_are_shrunk() -> None:
    assert decode(pictures.image(np.zeros((1, 512, 256), np.uint8))).shape[:2] == (192, 96)


def test_forest_fills_only_marks_whose_interval_leaves_zero_out() -> None:
    rows = [Interval("up", 2, 1, 3), Interval("zero", 1, -1, 3), Interval("touching", 1, 0, 2)]
    drawn = figures.forest("t", rows, x_label="points")
    assert len(re.findall(r'class="mark"', drawn)) == 1
    assert len(re.findall(r'class="mark open"', drawn)) == 2


def test_forest_puts_values_in_order_on_its_scale() -> None:
    drawn = ElementTree.fromstring(figures.forest("t", [Interval("a", 2, 1, 4)], x_label="points"))
    (whisker,) = [e for e in drawn.iter("line") if e.get("class") == "whisker"]
    (mark,) = [e for e in drawn.iter("rect") if e.get("class") == "mark"]
    low, high = float(whisker.attrib["x1"]), float(whisker.attrib["x2"])
    centre = float(mark.attrib["x"]) + float(mark.attrib["width"]) / 2
    assert (centre - low) / (high - low) == pytest.approx(1 / 3, abs=0.01)


def test_forest_makes_room_for_long_names() -> None:
    name = "ours-labelled-views − selftrain"
    cut, whole = (figures.forest("t", [Interval(name, 2, 1, 4)], x_label="points", most=n) for n in (16, len(name)))
    assert [drawn.count(f">{name}<") for drawn in (cut, whole)] == [1, 2]  # a title tells it all in both
    widths = [float(ElementTree.fromstring(drawn).attrib["viewBox"].split()[2]) for drawn in (cut, whole)]
    assert widths[1] - widths[0] == pytest.approx(6.5 * (len(name) - 16))


def test_every_figure_is_well_formed() -> None:
    bins: dict[str, list[float]] = {
        "confidence": [0.1, math.nan, 0.9],
        "frequency": [0.2, math.nan, 0.8],
        "count": [10, 0, 4],
    }
    trials = [{"id": "a", "config": {"architecture": "U<net"}, "val_miou": 0.5, "stopped_early": True}]
    interval = Interval("sea", 90, 89, 91)
    for drawn in (
        figures.curves("Loss", [Curve("loss", [(i, 1 / (1 + i)) for i in range(1000)])]),
        figures.reliability("oil", [("control", bins), ("distilled", bins)]),
        figures.trials("t", trials, "a", [0.5]),
        figures.levels("t", [("sea", interval, interval)], x_label="%"),
        figures.bars("t", [("prepare", 0.0, "0.0 min")], x_label="minutes"),
        side_by_side([[figures.bars("t", [], x_label="s")] * 2], 360, 80, "two"),
    ):
        assert "nan" not in ElementTree.tostring(ElementTree.fromstring(drawn), encoding="unicode")


def test_curves_without_finite_points_are_left_out() -> None:
    assert figures.curves("Loss", [Curve("loss", [(1, math.nan)])]) == ""


def test_attributes_and_text_are_escaped() -> None:
    assert tag("text", "a<b", aria_label='"x"') == '<text aria-label="&#34;x&#34;">a&lt;b</text>'


def test_ticks_are_round_and_inside() -> None:
    assert Scale(-0.2, 10.4, 0, 1).ticks(5) == pytest.approx([0, 5, 10])
    assert Scale(0.03, 2.2, 0, 1, log=True).ticks(5) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2])


def test_an_interval_that_touches_zero_shows_nothing() -> None:
    assert direction({"low": 0.0, "high": 0.1}) == "not shown"
    assert direction({"low": 0.001, "high": 0.1}) == "higher"
    assert direction({"low": -0.1, "high": -0.001}) == "lower"
    assert direction({"low": None, "high": None}) == "not shown"
    assert (signed(-1.25), signed(0.04), signed(-0.04)) == ("−1.2", "0.0", "0.0")


def test_speckle_of_equal_sets_is_equal() -> None:
    rng = numpy_rng(0, "tests/report/speckle")
    images = (60 * rng.gamma(4.0, 0.25, (4, 1, 32, 32))).clip(0, 255).astype(np.uint8)
    labels = np.zeros((4, 32, 32), np.uint8)
    labels[:, 8:24, 8:20] = 1
    found = compare_speckle((images, labels), (images, labels), SOS)
    assert [row["real"] for row in found["statistics"]] == [row["generated"] for row in found["statistics"]]
    assert found["statistics"][0]["real"] == pytest.approx(4.0, rel=0.35)
    assert found["spectrum"]["x"][-1] < 0.5


def test_overview_is_the_committed_file_and_well_formed(tmp_path: Path) -> None:
    committed = Path(overview.__file__).with_name("overview.svg")
    subprocess.run([sys.executable, "-m", "dakter.report.overview", str(tmp_path / "o.svg")], check=True)
    written = (tmp_path / "o.svg").read_text(encoding="utf-8")
    assert written == committed.read_text(encoding="utf-8")
    root = ElementTree.fromstring(written)
    label = "".join(root.itertext())
    for stage in ("Labelled SAR", "Joint diffusion", "Synthetic corpus", "Distillation sweep", "Gate and registry"):
        assert stage in label


def test_overview_refuses_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert overview.main([]) == 2
    assert "overview FILE.svg" in capsys.readouterr().err
