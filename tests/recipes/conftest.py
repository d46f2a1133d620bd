"""The modules of recipes/, which is no package, as fixtures."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


def load(corpus: str) -> ModuleType:
    name = f"recipes_{corpus}_prepare"
    spec = importlib.util.spec_from_file_location(name, RECIPES / corpus / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its functions are pickled by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def digits() -> ModuleType:
    """recipes/digits/prepare.py"""
    return load("digits")


@pytest.fixture(scope="session")
def an4() -> ModuleType:
    """recipes/an4/prepare.py"""
    return load("an4")
