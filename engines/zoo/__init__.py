"""Models that squall itself writes, with `onnx` alone: `write_package(spec, folder)` for each spec of `KINDS`."""

from engines.zoo.advection import AdvectionSpec
from engines.zoo.package import KINDS, Spec, write_package
from engines.zoo.persistence import PersistenceSpec
from engines.zoo.unet import UnetSpec

__all__ = ["KINDS", "AdvectionSpec", "PersistenceSpec", "Spec", "UnetSpec", "write_package"]
