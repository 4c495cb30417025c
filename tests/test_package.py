from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import ovseg

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUP = PROJECT["tool"]["setuptools"]
# Where the code of each installed package lies in the checkout.
FOLDERS = {name: ROOT / SETUP["package-dir"].get(name, name.replace(".", "/")) for name in SETUP["packages"]}
IGNORED = {"__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache"}


def files() -> list[Path]:
    """All files that belong to the package."""
    return sorted(
        path
        for folder in {FOLDERS["ovseg"], FOLDERS["ovseg.export"], FOLDERS["ovseg.model_cards"]}
        for path in folder.rglob("*")
        if path.is_file() and not IGNORED & set(path.parts) and path.suffix not in (".pyc", ".tmp")
    )


def test_public_names_resolve_and_are_documented() -> None:
    assert sorted(dir(ovseg)) == sorted(ovseg.__all__)
    assert len(set(ovseg.__all__)) == len(ovseg.__all__)
    for name in ovseg.__all__:
        value = getattr(ovseg, name)
        if name != "__version__":
            assert inspect.getdoc(value), name
            assert value.__module__.startswith("ovseg."), name
    with pytest.raises(AttributeError, match="no attribute 'segmentt'"):
        ovseg.segmentt  # noqa: B018


def test_names_for_the_type_checker_are_the_public_names() -> None:
    source = inspect.getsource(ovseg)
    declared = set(re.findall(r" as (\w+)\b", source))
    assert declared == set(ovseg.__all__) - {"__version__"}


@pytest.mark.parametrize("name", ["Segmenter", "Segmentation", "Classification", "ImageFeatures"])
def test_public_methods_are_documented(name: str) -> None:
    for attribute, value in vars(getattr(ovseg, name)).items():
        if not attribute.startswith("_") and (callable(value) or isinstance(value, (property, classmethod, staticmethod))):
            assert inspect.getdoc(value), f"{name}.{attribute}"


def test_every_error_can_be_caught_in_two_ways() -> None:
    errors = [getattr(ovseg, name) for name in ovseg.__all__ if name.endswith("Error")]
    assert len(errors) > 5
    for error in errors:
        assert issubclass(error, ovseg.OvsegError)
        if error is not ovseg.OvsegError:
            builtin = [base for base in error.__mro__ if base.__module__ == "builtins" and base not in (Exception, BaseException, object)]
            assert builtin, error


def test_at_most_two_positional_arguments() -> None:
    methods = (getattr(ovseg.Segmenter, name) for name in ("segment", "classify", "encode_image", "encode_text"))
    for function in (ovseg.segment, ovseg.classify, ovseg.load, *methods):
        kinds = [parameter.kind for name, parameter in inspect.signature(function).parameters.items() if name != "self"]
        assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 2
        assert not {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL} & set(kinds)


def test_the_function_and_the_method_take_the_same_options() -> None:
    for name in ("segment", "classify"):
        function, method = (inspect.signature(getattr(home, name)).parameters for home in (ovseg, ovseg.Segmenter))
        assert set(function) - {"model", "device"} == set(method) - {"self"}
        assert all(function[option].default == method[option].default for option in method if option != "self")


def test_it_is_typed() -> None:
    assert resources.files("ovseg").joinpath("py.typed").is_file()


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", ovseg.__version__)
    assert importlib.metadata.version("ovseg") == ovseg.__version__
    assert SETUP["dynamic"]["version"] == {"attr": "ovseg.__version__"}


def test_every_folder_with_code_is_a_package_of_the_wheel() -> None:
    found = {path.parent for path in files() if path.name == "__init__.py"}
    assert found == set(FOLDERS.values())
    assert {path.parent for path in files() if path.suffix == ".py"} == found


def test_every_data_file_is_in_the_wheel() -> None:
    matched: set[Path] = set()
    for package, patterns in SETUP["package-data"].items():
        for pattern in patterns:
            hits = set(FOLDERS[package].glob(pattern))
            assert hits, f"{pattern!r} of {package} matches nothing"
            matched |= hits
    assert {path for path in files() if path.suffix != ".py"} <= matched


def test_every_module_can_be_imported_or_says_what_is_missing() -> None:
    for module in pkgutil.walk_packages(ovseg.__path__, "ovseg."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:  # an optional package, such as torch
            assert error.name is None or not error.name.startswith("ovseg"), module.name


def test_the_commands_of_the_package_exist() -> None:
    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_no_file_names_the_place_it_was_made() -> None:
    traces = re.compile(rb"(?<![\w.-])/(?:work|home|root|tmp)/\w")
    for path in files():
        found = traces.search(path.read_bytes()) if path.suffix != ".safetensors" else None
        assert found is None, f"{path}: {found}"
