"""A place for a corpus, local and S3."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL at which a corpus may be made."""
    return str(tmp_path / "corpus") if request.param == "local" else f"{request.getfixturevalue('s3_bucket')}/a/corpus"
