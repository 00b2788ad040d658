"""Set-up of the whole test suite."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


class RootIsAFolder:
    """pytest imports the `__init__.py` of every package above a test. Ours at the root belongs to ComfyUI:
    it is loaded by path, as the host does it, in the tests that are about it and nowhere else."""

    @staticmethod
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", type=Path, default=ROOT / "tests" / "golden", help="folder of golden numbers (default: our copy)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsAFolder())
