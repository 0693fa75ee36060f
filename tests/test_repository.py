"""What the repository promises outside its code: commands, pinned versions, decisions, the cluster file, clean text."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.cli import main

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
SECTIONS = ["## What", "## Why", "## Measured"]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

MACHINE_PATH = re.compile(r"(?<![\w.*-])/(?:work/(?:main|shared)\b|root/\.)")
PACKAGE_INDEX = re.compile(r"python[h]osted\.org|pypi\.org/[s]imple|--(?:extra-)?index[-]url")


def tracked_texts() -> dict[str, str]:
    """Text of every tracked file by its path; skips outside a git checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so no list of tracked files")
    files = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return {str(file.relative_to(ROOT)): file.read_text(errors="replace") for file in files if file.is_file()}


@pytest.mark.parametrize("pattern", [MACHINE_PATH, PACKAGE_INDEX], ids=["machine path", "package index"])
def test_no_tracked_file_names_a_machine_or_a_package_index(pattern: re.Pattern[str]) -> None:
    found = {name: match.group() for name, text in tracked_texts().items() if (match := pattern.search(text))}
    assert not found


def test_the_patterns_find_what_they_are_for_and_nothing_else() -> None:
    home, work = Path("/", "root", ".ray"), Path("/", "work", "main")
    assert MACHINE_PATH.search(f"cd {home}")
    assert MACHINE_PATH.search(f"open('{work}')")
    assert PACKAGE_INDEX.search("-".join(["pip install -", "index", "url x"]))
    assert not MACHINE_PATH.search("tests/work/a /workers/1 /opt/squall/.venv /root/rain")


@pytest.mark.parametrize("file", DECISIONS, ids=lambda file: file.stem)
def test_a_decision_says_what_why_and_what_was_measured(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines[0].startswith(f"# {file.name[:3]}: ")
    assert [line for line in lines if line in SECTIONS] == SECTIONS


def test_no_two_decisions_share_a_number() -> None:
    numbers = [file.name[:3] for file in DECISIONS]
    assert sorted(set(numbers)) == numbers


def code_of(document: str) -> str:
    """The code of a Markdown document, in blocks and between words, without its comments."""
    blocks = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    shell = [code for language, code in blocks.findall(document) if language in ("", "sh", "bash", "console")]
    return re.sub(r"\s#.*", "", "\n".join([*shell, *re.findall(r"`[^`\n]+`", blocks.sub("", document))]))


def commands(document: str, program: str) -> set[str]:
    """Names of the commands of `program` that a Markdown document shows in its code."""
    return set(re.findall(rf"(?:^|[`/ ]){program} ([a-z]+)\b", code_of(document), re.MULTILINE))


def calls(code: str) -> list[list[str]]:
    """The words behind `squall` in every line that calls it, up to where the shell takes over; brackets left out."""
    found = re.findall(r"(?:^|[`/ ])squall ([a-z]+\b[^`|>()\n]*)", code, re.MULTILINE)
    return [shlex.split(re.sub(r"[\[\]]", "", words)) for words in found]


def parse(words: list[str]) -> None:
    """Reads words as the command line does, except that no value is looked at or missed.

    Raises:
        click.UsageError: there is no such command or option.
    """
    command: click.Command = main
    while isinstance(command, click.Group) and words:
        _, found, words = command.resolve_command(click.Context(command), words)
        assert found is not None
        command = found
    with suppress(click.BadOptionUsage):  # of an option without its value, as prose names it
        command.make_parser(click.Context(command)).parse_args(list(words))


def all_commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for one in command.commands.values():
            yield from all_commands(one)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_every_command_that_a_document_shows_exists(file: Path) -> None:
    text = file.read_text()
    assert commands(text, "make") <= targets()
    assert commands(text, "squall") <= set(main.commands)
    for words in calls(code_of(text)):
        parse(words)


def test_every_command_that_help_shows_exists() -> None:
    examples = [text for command in all_commands(main) for text in (command.help or "").split("\b")[1:]]
    shown = [words for text in examples for words in calls(text)]
    assert len(shown) > len(main.commands)
    for words in shown:
        parse(words)


@pytest.mark.parametrize(
    "line", ["squall rin x.yaml", "squall run x.yaml --colour red", "squall engine bild x", "squall pool stop --now"]
)
def test_a_command_or_an_option_that_does_not_exist_is_found(line: str) -> None:
    (words,) = calls(line)
    with pytest.raises(click.UsageError):
        parse(words)


def test_commands_are_found_in_code_and_not_in_prose() -> None:
    text = "We make rain. Run `make demo`:\n```sh\nmake test  # and make noise\nA=1 .venv/bin/squall run x.yaml\n```\n"
    assert commands(text, "make") == {"demo", "test"}
    assert commands(text, "squall") == {"run"}


def test_the_readme_shows_the_two_commands() -> None:
    assert {"demo", "test"} <= commands((ROOT / "README.md").read_text(), "make")


@pytest.mark.parametrize("version", ["3.8.18", None])
def test_make_refuses_an_old_or_absent_python_and_says_what_it_found(tmp_path: Path, version: str | None) -> None:
    python = tmp_path / "python"
    if version:
        python.write_text(f'#!/bin/sh\ncase "$2" in *platform*) echo {version};; *) exit 1;; esac\n')
        python.chmod(0o755)
    command = ["make", "demo", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"needs Python 3.11 or newer, but {python} is {version or 'not there'}" in done.stderr
    assert not (tmp_path / "venv").exists()


def pins() -> dict[str, str]:
    """Exact version of every package in constraints.txt that holds for this Python."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    wanted = [Requirement(line) for line in lines if line]
    return {pin.name: str(pin.specifier) for pin in wanted if pin.marker is None or pin.marker.evaluate()}


def requirements() -> list[Requirement]:
    project: dict[str, Any] = PYPROJECT["project"]
    extras = [project["optional-dependencies"][name] for name in ("dev", "notebooks", "benchmarks")]
    return [Requirement(text) for group in [project["dependencies"], *extras] for text in group]


@pytest.mark.parametrize("wanted", requirements(), ids=lambda wanted: wanted.name)
def test_every_requirement_has_an_exact_tested_version(wanted: Requirement) -> None:
    pin = pins()[canonicalize_name(wanted.name)]
    assert re.fullmatch(r"==[\w.]+", pin)
    assert wanted.specifier.contains(pin.removeprefix("=="), prereleases=True)


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_ray_refuses_a_cluster_file_with_an_unknown_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="head_start_command"):
        validate_config(prepare_config(cluster | {"head_start_command": []}))


def test_the_cluster_file_sends_all_that_a_node_installs(cluster: dict[str, Any]) -> None:
    sent = {source for source in cluster["file_mounts"].values() if not source.startswith("~")}
    assert all((ROOT / source).exists() for source in sent)
    packages = {name.partition(".")[0] for name in PYPROJECT["tool"]["setuptools"]["packages"]}
    assert packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == sent
