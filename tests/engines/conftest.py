"""What the engine tests are made on: small graphs and packages, built with `onnx` alone, and a reader of pages."""

import os
import secrets
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from obstore.store import MemoryStore, from_url
from onnx import TensorProto, helper, numpy_helper

CONTRACT = """
name: test
version: "1.0"
licence: Apache-2.0
input: {standard_name: lwe_precipitation_rate, units: mm h-1, frames: 2, cadence: 5min}
output: {standard_name: lwe_precipitation_rate, units: mm h-1, lead_times: [5min, 10min, 15min]}
"""


class Net:
    """A graph under construction; its methods add an operator and return the name of its result."""

    def __init__(self, channels: int = 2, seed: int = 0) -> None:
        self.channels, self.nodes, self.weights = channels, [], []
        self.random = np.random.default_rng(seed)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, values: object, dtype: str = "float32") -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def conv(self, x: str, given: int, made: int, kernel: int = 3, dilation: int = 1, stride: int = 1) -> str:
        """A convolution that keeps the size (`kernel` odd), scaled so that values stay near one."""
        scale = (2 / (given * kernel * kernel)) ** 0.5
        weights = self.constant(self.random.normal(scale=scale, size=(made, given, kernel, kernel)))
        bias = self.constant(self.random.normal(scale=0.1, size=made))
        pads = [dilation * (kernel // 2)] * 4
        return self.op("Conv", x, weights, bias, pads=pads, dilations=[dilation] * 2, strides=[stride] * 2)

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def pool(self, x: str, kind: str = "MaxPool", factor: int = 2) -> str:
        return self.op(kind, x, kernel_shape=[factor] * 2, strides=[factor] * 2)

    def grow(self, x: str, factor: int = 2, mode: str = "nearest") -> str:
        how = {"nearest": "asymmetric", "linear": "half_pixel"}[mode]
        scales = self.constant([1, 1, factor, factor])
        extra = {"nearest_mode": "floor"} if mode == "nearest" else {}
        return self.op("Resize", x, "", scales, mode=mode, coordinate_transformation_mode=how, **extra)

    def model(
        self, y: str, leads: int, size: tuple[object, object] = ("h", "w"), batch: object = "n"
    ) -> onnx.ModelProto:
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, self.channels, *size])
        returned = helper.make_tensor_value_info(y, TensorProto.FLOAT, [batch, leads, *size])
        graph = helper.make_graph(self.nodes, "g", [given], [returned], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def build_unet(
    width: int = 8, depth: int = 3, channels: int = 4, leads: int = 18, mode: str = "nearest"
) -> onnx.ModelProto:
    """A U-Net of stride 2**depth: two convolutions a level, max pooling down, resize and concatenation up."""
    net, skips = Net(channels), []

    def twice(x: str, given: int, made: int) -> str:
        return net.relu(net.conv(net.relu(net.conv(x, given, made)), made, made))

    x, planes = "x", channels
    for level in range(depth):
        x, planes = twice(x, planes, width << level), width << level
        skips.append((x, planes))
        x = net.pool(x)
    x = twice(x, planes, planes * 2)
    planes *= 2
    for skip, kept in reversed(skips):
        x = net.op("Concat", net.grow(x, mode=mode), skip, axis=1)
        x, planes = twice(x, planes + kept, kept), kept
    return net.model(net.conv(x, planes, leads, kernel=1), leads)


def build_plain() -> onnx.ModelProto:
    """Two channels in, three leads out, one convolution; fits CONTRACT."""
    net = Net(2)
    return net.model(net.conv("x", 2, 3), 3)


def write_package(folder: Path, model: onnx.ModelProto, **changes: object) -> Path:
    """A model package; `changes` replace top keys of the contract."""
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.yaml").write_text(yaml.safe_dump(yaml.safe_load(CONTRACT) | changes))
    return folder


@pytest.fixture(scope="session")
def net_type() -> type[Net]:
    return Net


@pytest.fixture(scope="session")
def unet():
    return build_unet


@pytest.fixture(scope="session")
def plain():
    return build_plain


@pytest.fixture(scope="session")
def package():
    return write_package


@pytest.fixture
def object_store():
    """An empty object store: in memory, or a new prefix of the URL in SQUALL_TEST_STORE, to try a real one."""
    url = os.environ.get("SQUALL_TEST_STORE")
    return MemoryStore() if url is None else from_url(f"{url.rstrip('/')}/{secrets.token_hex(8)}")


class Page(HTMLParser):
    """The tags, texts and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.words, self.links, self.tags = [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="session")
def read_page() -> type[Page]:
    return Page
