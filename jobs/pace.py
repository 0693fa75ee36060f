"""The pace of a model and of the cores beside it, as it was measured on this machine; the planner goes by it."""

import json
from dataclasses import asdict
from pathlib import Path

from engines.files import replace_file
from engines.model import ModelPackage
from jobs.folders import cache_folder
from pipelines.errors import ConfigError
from pipelines.planner import Pace


def known_pace(package: ModelPackage) -> Pace | None:
    """What was measured on this machine for the model, whatever its weights; None if nothing was."""
    try:
        return Pace(**json.loads(_file(package).read_bytes()))
    except (ConfigError, OSError, ValueError, TypeError):
        return None


def keep_pace(package: ModelPackage, pace: Pace) -> Path:
    """Writes what was measured, whole or not at all."""
    return replace_file(_file(package), json.dumps(asdict(pace)).encode())


def _file(package: ModelPackage) -> Path:
    return cache_folder() / "pace" / f"{package.graph_sha256}.json"
