"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


class _RootIsNoPackage:
    """Keeps pytest from importing the checkout's ``__init__.py``, which is for ComfyUI alone."""

    @pytest.hookimpl
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == parent.config.rootpath else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_RootIsNoPackage())
