"""Arms of suite ``science`` whose real images generator and teacher label together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dakter.data.tiles import TileCorpus
from dakter.evaluate.pooling import pooled
from dakter.schema import soft_to_stored
from dakter.students.models import predict
from jobs.suites import _science_page, _science_segmenters
from jobs.suites._science_arms import ALL_ARMS, ARMS, POOLED
from jobs.suites._science_cells import Workshop
from jobs.suites._science_plan import TIERS, student_cell
from jobs.suites._science_plan import cells as every_cell

ARCHITECTURE = ("FPN", "resnet18")


def test_an_arm_is_as_the_one_that_it_changes_but_for_who_labels_real_images() -> None:
    for name, arm in POOLED.items():
        before = ALL_ARMS[name.replace("-pooled", "")]
        assert arm == replace(before, what=arm.what, real_unlabelled="pool"), name
        assert before.real_unlabelled == "generator", name
        assert arm.needs_teacher, name
        assert "student-real-unet-seed3" in student_cell(TIERS["scarce"], name, ("Unet", "resnet18"), 3).needs


def test_real_images_are_labelled_together_and_the_pool_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = replace(ARMS["ours"], real_unlabelled="pool", what="pooled")
    monkeypatch.setitem(ALL_ARMS, "ours-pooled", arm)
    tier = replace(TIERS["short"], arms=("real", "ours", "ours-pooled"), seeds=(0,))
    shop = Workshop(tier, tmp_path, lambda: False)
    cells = [student_cell(tier, name, ARCHITECTURE, 0) for name in tier.arms]
    figures = {cell.name: shop.run(cell) for cell in cells}
    found = figures["student-ours-pooled-fpn-seed0"]["pool"]
    assert sum(found["weights"]) == pytest.approx(1)
    assert "pool" not in figures["student-ours-fpn-seed0"]

    images = TileCorpus.open(str(tmp_path / "tiles/data-8-seed0")).read("unlabelled").images
    pairs = shop.pairs("unlabelled", 8, 0)
    readout, teacher = shop._readout(shop.model("unlabelled", 8, 0)[0], 0), shop.student("real", ARCHITECTURE, 0)
    wanted = soft_to_stored(pooled([readout(images), predict(teacher, images)], found["weights"]))
    stream = shop._stream(arm, ARCHITECTURE, 8, 0)
    assert stream
    drawn, soft = stream(0, 6)
    label_of = {image.tobytes(): label for image, label in zip(images, wanted, strict=True)}
    rows = [k for k, image in enumerate(drawn) if image.tobytes() in label_of]
    assert rows == [3, 4, 5], "the other half are generated, labelled by p(y given x)"
    for k in rows:
        assert np.array_equal(soft[k], label_of[drawn[k].tobytes()])
    readout_of = {image.tobytes(): label for image, label in zip(pairs["image"], pairs["readout"], strict=True)}
    assert all((soft[k] == readout_of[drawn[k].tobytes()]).all() for k in range(3))

    figures["data-8-seed0"] = shop.run(next(cell for cell in every_cell(tier) if cell.kind == "data"))
    about = {"hardware": "a machine", "date": "", "commit": ""}
    records = {name: {**about, "figures": figure} for name, figure in figures.items()}
    page = Path(_science_page.write_page("short", tier, records, str(tmp_path))).read_text()
    name = _science_segmenters.named_pool("unlabelled")
    (row,) = [line for line in page.split("## Contrasts")[0].splitlines() if line.startswith(f"| **{name}**")]
    miou = 100 * found["test"]["tables"]["simulated"]["miou"]
    assert f"| {miou:.1f} (" in row
    assert f"- {name} − `real`" in page.split("## The generator as a segmenter")[1]
