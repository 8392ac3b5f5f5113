"""One version everywhere, in a valid citation file; and no run's identity depends on it."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import kdlib
from kdlib.run.finished import Description

ROOT = Path(__file__).parents[1]


def test_the_version_is_the_same_in_package_citation_and_changelog():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kdlib.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", kdlib.__version__)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation()["version"] == newest[1] == kdlib.__version__


def citation() -> dict[str, str]:
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith(" "))


def test_the_citation_has_what_version_1_2_0_of_the_format_requires():
    found = citation()
    assert found["cff-version"] == "1.2.0"
    assert {"message", "title"} <= found.keys()
    assert found["type"] in ("software", "dataset")
    assert "authors:\n  - name: " in (ROOT / "CITATION.cff").read_text()


def test_a_run_has_the_same_identity_in_another_version(monkeypatch):
    about = Description("source/train", 1, {"device": "cpu"}, 0, "data")
    before = about.id
    monkeypatch.setattr(kdlib, "__version__", "9.9.9")
    assert about.id == before
    assert "version" not in " ".join(field.name for field in fields(Description))
