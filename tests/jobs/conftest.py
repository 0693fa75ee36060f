"""A tiny radar, a tiny model and the product that joins them."""

import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import xarray as xr
import yaml
import zarr
from onnx import TensorProto, helper, numpy_helper

from jobs.pool import connect, disconnect

TIMES = np.arange("2024-06-01T12:00", "2024-06-01T12:30", 5, dtype="datetime64[m]").astype("datetime64[ns]")
LEADS = 3


def write_radar(path: Path, shape=(300, 260), seed=3, chunk=None) -> Path:
    """A store of int16 rain with a missing corner and a dry half, one chunk a frame unless told otherwise."""
    rng = np.random.default_rng(seed)
    rain = np.zeros((len(TIMES), *shape), np.int16)
    rain[:, : shape[0] // 2] = rng.integers(0, 2000, (len(TIMES), shape[0] // 2, shape[1]))
    rain[:, -40:, -60:] = -32768
    attrs = {"standard_name": "lwe_precipitation_rate", "units": "mm h-1", "scale_factor": 0.01, "_FillValue": -32768}
    y, x = np.arange(shape[0])[::-1] * 1000.0, np.arange(shape[1]) * 1000.0
    ds = xr.Dataset(
        {"precip_rate": (("time", "y", "x"), rain, attrs | {"no_echo_value": 0.0})},
        {
            "time": TIMES,
            "y": ("y", y, {"units": "m", "standard_name": "projection_y_coordinate"}),
            "x": ("x", x, {"units": "m", "standard_name": "projection_x_coordinate"}),
        },
    )
    ds.to_zarr(path, encoding={"precip_rate": {"chunks": (1, *(chunk or shape))}}, zarr_format=3)
    return path


def write_blur(folder: Path, kernel: int = 9, frames: int = 2, layers: int = 1) -> Path:
    """A model package of plain convolutions with a known radius."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, nodes, weights, name = np.random.default_rng(0), [], [], "x"
    for layer in range(layers):
        channels = frames if layer == 0 else LEADS
        w = rng.uniform(0, 2 / (channels * kernel**2), (LEADS, channels, kernel, kernel)).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{layer}"))
        out = "y" if layer == layers - 1 else f"h{layer}"
        nodes.append(helper.make_node("Conv", [name, f"w{layer}"], [out], pads=[kernel // 2] * 4))
        name = out
    graph = helper.make_graph(
        nodes,
        "blur",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", frames, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", LEADS, "h", "w"])],
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    rain = {"standard_name": "lwe_precipitation_rate", "units": "mm h-1"}
    contract = {
        "name": "blur",
        "version": "1",
        "licence": "Apache-2.0",
        "input": rain | {"frames": frames, "cadence": "5min"},
        "output": rain | {"lead_times": {"step": "5min", "count": LEADS}},
        "tile": {"stride": 1, "radius": layers * (kernel // 2)},
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(contract))
    return folder


def give_nan(folder: Path, leads: Collection[int] = range(LEADS)) -> None:
    """Has the model of `write_blur` give NaN everywhere, or everywhere at some lead times."""
    model = onnx.load(folder / "model.onnx")
    model.graph.node[-1].output[0] = "finite"
    factors = np.array([0.0 if lead in leads else 1.0 for lead in range(LEADS)], np.float32).reshape(1, LEADS, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(factors, "factors"))
    for operator, given, made in (("Mul", ["finite", "factors"], "some"), ("Div", ["some", "factors"], "y")):
        model.graph.node.append(helper.make_node(operator, given, [made]))
    onnx.save(model, folder / "model.onnx")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of two cores, started here and ended with the module."""
    connect(cores=2)
    yield
    disconnect()


@pytest.fixture
def blind_model(product: Path) -> None:
    """The product's model gives NaN everywhere."""
    give_nan(product.parent / "blur")


@pytest.fixture
def blind_at(product: Path) -> Callable[[Collection[int]], None]:
    """Has the product's model give NaN everywhere at lead times, by their positions."""
    return lambda leads: give_nan(product.parent / "blur", leads)


@pytest.fixture
def rechunk(product: Path) -> Callable[[int], Path]:
    """Writes the product's radar store again, in chunks of so many cells each way."""

    def write(edge: int) -> Path:
        shutil.rmtree(product.parent / "radar.zarr")
        return write_radar(product.parent / "radar.zarr", chunk=(edge, edge))

    return write


@pytest.fixture
def chunked_radar(rechunk: Callable[[int], Path]) -> Path:
    """The product's radar store again, in chunks that workers read for themselves."""
    return rechunk(8)


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A product file beside its radar store and its model."""
    write_radar(tmp_path / "radar.zarr")
    write_blur(tmp_path / "blur")
    tree = {
        "name": "tiny",
        "input": {"store": "radar.zarr", "variable": "precip_rate", "history": ["-5min", "0min"]},
        "model": {"package": "blur"},
        "lead_times": {"step": "5min", "until": "15min"},
        "tiling": {"tile": [72, 72]},
        "output": {"store": "out", "variable": "precip_rate", "shards": [64, 128], "chunks": [32, 64]},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.fixture
def rescale(product: Path) -> Callable[[float], None]:
    """Has the codes of the product's store mean something else from now on: another scale_factor than 0.01."""

    def write(scale_factor: float) -> None:
        group = zarr.open_group(product.parent / "radar.zarr", mode="r+")
        group["precip_rate"].attrs["scale_factor"] = scale_factor
        zarr.consolidate_metadata(group.store)

    return write
