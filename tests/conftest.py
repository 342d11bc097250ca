"""Tests keep their hands off the user's trained weights and progress, also where pytest is called without make."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory):
    """An empty ``COURSE_CACHE`` and ``COURSE_STATE`` for the whole run, unless they are set (``make test`` sets them)."""
    ours = [name for name in ("COURSE_CACHE", "COURSE_STATE") if not os.environ.get(name)]
    for name in ours:
        os.environ[name] = str(tmp_path_factory.mktemp(name.lower()))
    yield
    for name in ours:
        del os.environ[name]
