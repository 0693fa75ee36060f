"""The kernels without a GPU: their PTX is of their source, and the source, compiled for the host, does what it says."""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest

from engines.base import EngineError
from engines.codes import CodeTable
from engines.trt import kernels

SOURCES = sorted(kernels.FOLDER.glob("*.cu"))
ENTRIES = re.compile(r'extern "C" __global__ void (\w+)\(')
MACHINE = re.compile(rb"(?:^|[\s\"])/[a-z]")

SPECIAL = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 0.25, -1, -0.25])

HOST = r"""
#include <cstring>
#define __device__
#define __global__
#define __forceinline__ inline
struct Place { unsigned x; };
static Place blockIdx, blockDim, gridDim, threadIdx;
struct float4 { float x, y, z, w; };
struct ushort4 { unsigned short x, y, z, w; };
struct uchar4 { unsigned char x, y, z, w; };
template <typename T> T __ldg(const T *at) { return *at; }
static int __float_as_int(float value) { int bits; std::memcpy(&bits, &value, 4); return bits; }
#include "pack.cu"
template <typename Kernel, typename... Given> void run(unsigned blocks, unsigned threads, Kernel kernel, Given... given)
{
    gridDim.x = blocks; blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
            kernel(given...);
}
extern "C" void float_16(unsigned b, unsigned t, const float *v, unsigned short *c, long long n, const int *k,
                         const unsigned short *s, int lowest, int fill, float below)
{ run(b, t, pack_float_16, v, c, n, k, s, lowest, fill, below); }
extern "C" void float_8(unsigned b, unsigned t, const float *v, unsigned char *c, long long n, const int *k,
                        const unsigned short *s, int lowest, int fill, float below)
{ run(b, t, pack_float_8, v, c, n, k, s, lowest, fill, below); }
extern "C" void half_16(unsigned b, unsigned t, const unsigned short *v, unsigned short *c, long long n,
                        const unsigned short *table)
{ run(b, t, pack_half_16, v, c, n, table); }
extern "C" void half_8(unsigned b, unsigned t, const unsigned short *v, unsigned char *c, long long n,
                       const unsigned char *table)
{ run(b, t, pack_half_8, v, c, n, table); }
"""

TABLES = {
    "int16": CodeTable(np.arange(-32766.5, 32767, dtype=np.float32) / 100, "int16", -32767, -32768),
    "uint16": CodeTable(np.arange(0.5, 65534, dtype=np.float32) / 1000, "uint16", 0, 65535, -0.25),
    "uint8": CodeTable(np.append(np.float32([-np.inf, 0, 0.25]), np.float32([np.nan] * 9)), "uint8", 0, 255, -1.0),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The kernels of pack.cu as functions of the host."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.cpp").write_text(HOST)
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{kernels.FOLDER}", "-o", "host.so", "host.cpp"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return ctypes.CDLL(str(folder / "host.so"))


def noise(count):
    """Values of any bits, of rain, and special ones, in no order."""
    random = np.random.default_rng(count)
    bits, rain = random.integers(0, 2**32, count, dtype=np.uint32).view(np.float32), random.normal(0, 30, count)
    values = np.where(random.random(count) < 0.5, bits, rain.astype(np.float32))
    values[::7] = random.choice(
        np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 0.25, -1, -0.25]), len(values[::7])
    )
    return values


def address(array):
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("count", [1, 3, 4, 1027, 50_000])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_kernel_finds_what_the_table_says(host, table, count):
    values, codes = noise(count), np.full(count + 4, 77, table.dtype)
    keys, below = table.keys.astype(np.int32), float("nan") if table.missing_below is None else table.missing_below
    kernel = getattr(host, f"float_{8 * codes.itemsize}")
    given = address(values), address(codes), ctypes.c_longlong(count), address(keys), address(table.starts)
    kernel(3, 32, *given, table.lowest, table.fill, ctypes.c_float(below))
    np.testing.assert_array_equal(codes[:count], table.search(values))
    assert (codes[count:] == 77).all()


@pytest.mark.parametrize("count", [2, 1027])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_kernel_of_halves_looks_up(host, table, count):
    values = np.random.default_rng(count).integers(0, 2**16, count, dtype=np.uint16)
    codes = np.full(count + 4, 77, table.dtype)
    kernel = getattr(host, f"half_{8 * codes.itemsize}")
    kernel(2, 64, address(values), address(codes), ctypes.c_longlong(count), address(table.of_halves))
    np.testing.assert_array_equal(codes[:count], table.search(values.view(np.float16).astype(np.float32)))
    assert (codes[count:] == 77).all()


# The PTX


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_ptx_is_of_its_source(source):
    first = kernels.ptx_of(source).read_text().splitlines(keepends=True)[0]
    assert first == kernels.origin_line(source), "make it anew: python -m engines.trt.kernels"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_ptx_has_every_kernel_for_any_gpu_and_names_no_machine(source):
    ptx = kernels.read_ptx(source)
    assert set(re.findall(r"\.visible \.entry (\w+)\(", ptx.decode().rstrip("\0"))) == set(
        ENTRIES.findall(source.read_text())
    )
    assert b"\n.version 7.0\n.target sm_70\n" in ptx
    assert ptx.endswith(b"\0")
    assert not MACHINE.search(ptx)


def test_a_kernel_that_was_not_installed_is_an_error(tmp_path):
    with pytest.raises(EngineError, match=r"a kernel cannot be read, install squall again: .*other\.ptx"):
        kernels.read_ptx(tmp_path / "other.cu")
