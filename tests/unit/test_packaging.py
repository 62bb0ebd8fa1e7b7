"""pyproject.toml, constraints.txt, environment.yml and CITATION.cff say the same."""

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mcn._version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(project: dict[str, Any]) -> list[Requirement]:
    listed = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        listed += extra
    return [Requirement(line) for line in listed]


def pins() -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def place(python: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }


def holds(marker: Marker | None, python: str) -> bool:
    return marker is None or marker.evaluate(place(python))


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_once_and_within_its_range(python: str, project: dict[str, Any]) -> None:
    assert python in SpecifierSet(project["project"]["requires-python"])
    wanted = [requirement for requirement in requirements(project) if holds(requirement.marker, python)]
    pinned: dict[str, list[str]] = {}
    for pin in pins():
        (exact,) = pin.specifier
        assert exact.operator == "==", pin
        if holds(pin.marker, python):
            pinned.setdefault(canonicalize_name(pin.name), []).append(exact.version)
    for requirement in wanted:
        found = pinned.get(canonicalize_name(requirement.name), [])
        assert len(found) == 1, f"{requirement.name} on Python {python}: {found}"
        assert requirement.specifier.contains(found[0], prereleases=True), f"{requirement} is {found[0]}"
    assert set(pinned) == {canonicalize_name(requirement.name) for requirement in wanted}


def test_the_book_is_not_version_2(project: dict[str, Any]) -> None:
    (book,) = [r for r in requirements(project) if r.name == "jupyter-book"]
    assert not book.specifier.contains("2.0.0")
    (pin,) = [r for r in pins() if r.name == "jupyter-book"]
    assert str(pin.specifier).startswith("==1.")


def test_conda_takes_the_same_versions(project: dict[str, Any]) -> None:
    text = (ROOT / "environment.yml").read_text()
    environment = yaml.safe_load(text)
    (pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert "--constraint constraints.txt" in pip
    (install,) = [line for line in pip if line.startswith("--editable")]
    extras = set(re.search(r"\.\[(.*)\]", install)[1].split(","))  # type: ignore[index]
    seldom = {"bench", "browser"}
    assert extras == set(project["project"]["optional-dependencies"]) - seldom
    (python,) = [part for part in environment["dependencies"] if str(part).startswith("python")]
    allowed = SpecifierSet(python.removeprefix("python"))
    lowest = SpecifierSet(project["project"]["requires-python"])
    assert all(version in allowed and version in lowest for version in PYTHONS)
    assert "3.9" not in allowed
    assert "3.9" not in lowest


def test_make_installs_through_the_constraints() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    extras = [line.partition("--constraint constraints.txt --editable ")[2] for line in lines]
    assert extras == ["'.[book,data,cluster,test]'", "'.[browser]'"]


def test_one_version_everywhere(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mcn._version.__version__"}
    assert "version" not in project["project"]
    assert citation["license"] == project["project"]["license"]


def test_files_that_the_package_needs_are_shipped(project: dict[str, Any]) -> None:
    assert set(project["tool"]["setuptools"]["package-data"]["mcn"]) >= {"presets/*.yaml", "py.typed"}
    assert (ROOT / "mcn" / "py.typed").is_file()
    for folder in (ROOT / "mcn").rglob("*.py"):
        assert (folder.parent / "__init__.py").is_file(), folder
    for name in [project["project"]["readme"], *project["project"]["license-files"]]:
        assert (ROOT / name).is_file(), name


def test_imports_are_dependencies(project: dict[str, Any]) -> None:
    """Nothing is imported that an install would not bring."""
    names = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "sklearn": "scikit-learn",
        "cv2": "opencv-contrib-python-headless",
    }
    known = {canonicalize_name(requirement.name) for requirement in requirements(project)} | {"mcn"}
    for path in (ROOT / "mcn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in (module.split(".")[0] for module in modules):
                if module not in sys.stdlib_module_names:
                    assert canonicalize_name(names.get(module, module)) in known, f"{path.name}: {module}"
