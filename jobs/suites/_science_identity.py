"""What the record of a cell of suite ``science`` is of; no file is opened for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dakter.config import differences, digest_json
from dakter.errors import ConflictError
from jobs.suites._science_arms import ALL_ARMS, GENERATORS
from jobs.suites._science_plan import Cell, Tier


def identity(tier: Tier, cell: Cell) -> dict[str, Any]:
    """What makes a cell's record another record, whatever the place of the data; no file is opened for it."""
    data = tier.data_of(cell.labels, cell.seed).dump()
    for place in ("root", "unlabelled_root"):
        data.pop(place)
    found: dict[str, Any] = {"cell": cell.name, "data": data, "tiles": tier.tiles.dump()}
    if cell.kind == "data":
        return found
    if cell.generator:
        found["generator"] = {
            "network": tier.network_of(cell.generator).dump(),
            "diffusion": tier.diffusion_of(cell.generator).dump(),
            "train": tier.train_of(cell.generator, cell.seed).identity(),
            "sampler": tier.sampler.dump(),
            "num_generated": tier.num_generated,
            "evaluations": tier.evaluations,
            **({"render": render} if (render := GENERATORS[cell.generator].render) else {}),
        }
    if cell.kind in ("student", "images"):
        assert cell.arm
        assert cell.architecture
        arm = ALL_ARMS[cell.arm]
        found["arm"] = {key: value for key, value in vars(arm).items() if key != "what" and (key != "shared" or value)}
        found["student"] = tier.student_of(arm, *cell.architecture).dump()
        found["students"] = tier.students_of(arm).dump()
    return {**found, "digest": digest_json(found)}


def check_identity(place: str, record: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ConflictError unless a working file was made with the settings of now."""
    different = differences(wanted, record.get("identity", {}))
    if different:
        raise ConflictError(f"{place}: made with other settings; remove it or choose another --out: {different}")
