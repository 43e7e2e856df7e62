"""Importing code that is named at run time: our own packages by discovery, plugin folders by path."""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

_PREFIX = "routeur_plugins"


def modules_of_package(package: str) -> Iterator[tuple[str, Callable[[], ModuleType]]]:
    """Each module directly in `package`: its name and a function that imports it."""
    path = importlib.import_module(package).__path__
    for found in sorted(pkgutil.iter_modules(path), key=lambda module: module.name):
        yield found.name, partial(importlib.import_module, f"{package}.{found.name}")


def load_file(path: Path) -> ModuleType:
    """Import one file that is on no import path.

    Raises:
        ImportError: there is no such file; whatever the file itself raises passes through.
    """
    return _load(f"{_PREFIX}.{path.stem}", path)


def load_from_folder(folder: Path, module: str) -> ModuleType:
    """Import `folder/module.py` as part of a package made of that folder, so that it may import its neighbours
    (`from .prompts import ...`)."""
    package_name = f"{_PREFIX}.{folder.name}"
    package = ModuleType(package_name)
    package.__path__ = [str(folder)]
    sys.modules[package_name] = package
    return _load(f"{package_name}.{module}", folder / f"{module}.py")


def _load(name: str, path: Path) -> ModuleType:
    if _PREFIX not in sys.modules:
        root = ModuleType(_PREFIX)
        root.__path__ = []
        sys.modules[_PREFIX] = root
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no module file {path.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
