"""The import arrows of the project, and who may read the test split."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {
    "errors",
    "schema",
    "rng",
    "config",
    "storage",
    "progress",
    "metrics",
    "turns",
    "views",
    "ema",
    "captured",
    "packaging",
}
PARTS = {"data", "diffusion", "students", "evaluate", "corpus"}
TOP = {"promotion", "registry", "report", "tracking", "tracking_address"}
# Who may import whom inside dakter/. Parts never import their siblings: what one needs of another is passed in.
ALLOWED = dict.fromkeys(BASE, BASE) | {name: BASE | {name} for name in PARTS} | dict.fromkeys(TOP, BASE | PARTS | TOP)


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def library() -> list[Path]:
    return sorted((ROOT / "dakter").rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "dakter").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", library(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    names = imports(path)
    outside = {name.split(".")[0] for name in names}
    assert "ray" not in outside, "dakter/ never imports Ray"
    assert "jobs" not in outside, "dakter/ never imports jobs/"
    assert "mlflow" not in outside or path.name == "tracking.py", "MLflow is imported by dakter/tracking.py alone"
    if path == ROOT / "dakter" / "__init__.py":
        return
    used = {name.split(".")[1] for name in names if name.startswith("dakter.")}
    assert used <= ALLOWED[part_of(path)], f"{path} imports {sorted(used - ALLOWED[part_of(path)])}"


def test_infra_is_imported_by_nobody() -> None:
    for path in [*library(), *(ROOT / "jobs").rglob("*.py")]:
        assert not any(name.split(".")[0] == "infra" for name in imports(path)), path


def test_test_data_are_read_by_evaluation_alone() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in [*library(), *(ROOT / "jobs").rglob("*.py")]
        if any(name.endswith(".read_test") for name in imports(path)) or "read_test(" in path.read_text()
    }
    assert readers == {"dakter/data/tiles.py", "jobs/evaluate.py", "jobs/suites/_science_scores.py"}


def test_the_test_store_is_named_by_its_writers_and_its_reader_alone() -> None:
    files = [*library(), *(ROOT / "jobs").rglob("*.py")]
    named = {str(path.relative_to(ROOT)) for path in files if "test.zarr" in path.read_text()}
    assert named == {"dakter/data/tiles.py", "dakter/data/build.py", "jobs/prepare.py"}


def test_importing_has_no_side_effects() -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in library() if path.stem != "__init__"]
    code = (
        "import sys, os, importlib; before = set(os.listdir('.'))\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert 'ray' not in sys.modules and 'mlflow' not in sys.modules, 'imported Ray or MLflow'\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot picks a backend for the whole process'\n"
        "assert set(os.listdir('.')) == before, 'wrote files'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_package_is_installed_by_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for folder in sorted({path.parent for path in library()}):
        assert f'"{".".join(folder.relative_to(ROOT).parts)}"' in text, folder
