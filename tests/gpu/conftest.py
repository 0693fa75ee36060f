"""Where there is no GPU with TensorRT, every test of this folder is skipped and says why."""

import pytest

from engines import cuda
from engines.base import EngineError
from engines.trt import load_surface


@pytest.fixture(scope="session", autouse=True)
def gpu_with_tensorrt() -> None:
    try:
        cuda.require_device("this test")
        load_surface()
    except EngineError as error:
        pytest.skip(str(error))
