"""Working files of suite ``science`` that several processes want at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dakter.data.build import prepare
from dakter.errors import Stopped
from jobs.suites._science_alone import alone
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


@pytest.mark.parametrize("made", ["_train", "_draw", "_fit_student"])
def test_so_it_is_with_models_their_pairs_and_students(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, calls = getattr(Workshop, made), list[int]()

    def slowly(self: Workshop, *what: Any) -> None:
        calls.append(1)
        time.sleep(0.3)
        making(self, *what)

    monkeypatch.setattr(Workshop, made, slowly)
    tier = TIERS["short"]
    Workshop(tier, tmp_path, lambda: False).corpus(8, 0)
    architecture = tier.architectures[0]

    def wanted(shop: Workshop) -> None:
        if made == "_fit_student":
            shop.student("real", architecture, 0)
        else:
            shop.pairs("paper", 8, 0)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(wanted, [Workshop(tier, tmp_path, lambda: False) for _ in range(2)]))
    assert len(calls) == 1


def test_who_waits_can_be_stopped_and_what_is_let_go_can_be_had(tmp_path: Path) -> None:
    asked, held = list[int](), threading.Event()

    def check_stop() -> None:
        asked.append(1)
        raise Stopped("as asked")

    def wait() -> None:
        with alone(tmp_path, "tiles", check_stop):
            held.set()

    with alone(tmp_path, "tiles", lambda: None), ThreadPoolExecutor(1) as pool:
        with pytest.raises(Stopped, match="as asked"):
            pool.submit(wait).result()
        with alone(tmp_path, "other", check_stop):
            pass
    assert asked == [1]
    assert not held.is_set()
    wait()
    assert held.is_set()
