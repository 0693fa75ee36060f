"""Owners over the CUDA runtime: statuses checked, memory given back, one clear sentence without a GPU."""

import subprocess
import sys

import pytest

from engines import cuda
from engines.base import EngineError

NO_CUDA = "import sys; sys.modules['cuda'] = None; from engines import cuda; "


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_without_the_bindings_there_are_no_gpus_and_the_reason_names_what_to_install():
    done = run(NO_CUDA + "assert cuda.device_count() == 0; cuda.require_device('a test')")
    assert "EngineError: a test needs an NVIDIA GPU with its driver" in done.stderr
    assert "install squall[tensorrt]" in done.stderr


def test_the_real_bindings_have_every_function_that_we_call():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed (extra rtx)")
    names = "GetDeviceCount Malloc HostAlloc Free FreeHost MemcpyAsync StreamCreateWithFlags StreamDestroy "
    names += "StreamSynchronize StreamWaitEvent EventCreate EventCreateWithFlags EventDestroy EventRecord "
    names += "EventSynchronize EventElapsedTime SetDevice MemGetInfo GetDeviceProperties GetLastError "
    names += "StreamBeginCapture StreamEndCapture GraphGetNodes GraphInstantiate GraphLaunch GraphDestroy "
    names += "GraphExecDestroy"
    assert all(hasattr(runtime, f"cuda{name}") for name in names.split())
    flags = runtime.cudaStreamNonBlocking, runtime.cudaEventBlockingSync, runtime.cudaEventDisableTiming
    assert flags == (1, 1, 2)
    assert runtime.cudaMemcpyKind.cudaMemcpyDefault.value == 4
    assert runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal.value == 1


def test_the_real_bindings_of_the_driver_have_what_launches_a_kernel():
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed (extra rtx)")
    names = "LibraryLoadData LibraryGetKernel LibraryUnload LaunchKernel"
    assert all(hasattr(driver, f"cu{name}") for name in names.split())
    statuses = {status.name for status in driver.CUresult}
    assert {name for name in cuda.FATAL | set(cuda.OUT_OF_MEMORY) if name.startswith("CUDA_")} <= statuses
    assert "CUDA_SUCCESS" in statuses


def test_where_cuda_finds_no_gpu_every_way_in_is_an_error_and_no_crash():
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed (extra rtx)")
    if cuda.device_count():
        pytest.skip("there is a GPU here")
    for way_in in (cuda.describe_device, lambda: cuda.require_device("a test"), lambda: cuda.select(0)):
        with pytest.raises(EngineError, match=r"CUDA finds none here|may use 0"):
            way_in()
    for make in (cuda.Stream, cuda.Event, lambda: cuda.DeviceBuffer(8), lambda: cuda.PinnedBuffer(8), cuda.free_bytes):
        with pytest.raises(EngineError, match="failed: cudaError"):
            make()
