"""Working files of suite ``science`` that several processes want at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dakter.data.build import prepare
from jobs.suites._science_cells import Workshop
from jobs.suites._science_plan import TIERS


def test_one_of_several_workers_makes_what_all_of_them_want(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier, made, inside = TIERS["short"], list[str](), list[int]()

    def slowly(data: Any, tiles: Any, url: str, **how: Any) -> None:
        inside.append(1)
        time.sleep(0.2)
        assert len(inside) == 1, "two at a time"
        if not Path(url).exists():
            made.append(url)
            prepare(data, tiles, url, **how)
        inside.clear()

    monkeypatch.setattr("jobs.suites._science_cells.prepare", slowly)
    with ThreadPoolExecutor(3) as pool:
        shops = [Workshop(tier, tmp_path, lambda: False) for _ in range(3)]
        corpora = list(pool.map(lambda shop: shop.corpus(8, 0), shops))
    assert len(made) == 1
    assert len({corpus.manifest.digest for corpus in corpora}) == 1
