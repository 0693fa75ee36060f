"""A model of the registry runs in a precision only if that precision passed the gate."""

import json
import os

import pytest

from engines.registry import open_registry
from jobs.models import open_package
from jobs.prepare import load
from pipelines.errors import ConfigError


@pytest.fixture(params=["", "memory:///"], ids=["folder", "objects"])
def registry(request, tmp_path, monkeypatch):
    place = f"{request.param}{tmp_path / 'registry'}"
    monkeypatch.setenv("SQUALL_REGISTRY", place)
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    return open_registry(place, tmp_path / "other machine")


@pytest.fixture
def add(registry, product, tmp_path):
    """Adds the blur to the registry with gate reports, and promotes it."""

    def added(**verdicts):
        reports = [tmp_path / f"gate-{precision}.json" for precision in verdicts]
        for path, verdict in zip(reports, verdicts.values(), strict=True):
            path.write_text(json.dumps({"verdict": verdict}))
        registry.add(product.parent / "blur", reports=reports)
        registry.promote("blur", "1", force=True, why="test")

    return added


HALF = ("model.package=registry:blur", "model.precision=half")


@pytest.mark.parametrize(
    ("verdicts", "says"), [({"float32": "go"}, "is not there"), ({"float32": "go", "half": "no-go"}, "says no-go")]
)
def test_a_precision_without_a_passing_gate_is_refused_and_says_what_to_do(add, product, verdicts, says):
    add(**verdicts)
    with pytest.raises(ConfigError, match=rf"gate-half\.json of version 1 of blur {says}; .*squall publish .* half"):
        load(product, HALF)
    assert load(product, HALF[:1]).graph.precision.arithmetic == "float32"


def test_a_precision_that_passed_is_run(add, product):
    add(float32="go", half="go")
    assert load(product, HALF).graph.conversion.obtained.arithmetic == "half"


def test_a_folder_needs_no_gate(product):
    assert load(product, HALF[1:]).graph.conversion.obtained.arithmetic == "half"


def test_a_version_of_an_object_store_is_used_from_the_cache(add, tmp_path):
    add(float32="go")
    folder = open_package("registry:blur").folder
    home = tmp_path / ("cache/releases" if "memory" in os.environ["SQUALL_REGISTRY"] else "registry/blur/versions")
    assert folder.parent == home


def test_the_registry_is_asked_for_production_unless_a_version_or_alias_is_named(add):
    add(float32="go")
    assert open_package("registry:blur").identity == open_package("registry:blur@1").identity
