"""Between the host and an engine: batches cross as numbers, or as codes that the GPU unpacks and packs.

        staged        copied           unpacked                        packed, masked     copied
Numbers  given ───▶    given ────────────────────▶ inference ─▶ returned ────────────────────▶ returned
Codes   stored ───▶   stored ──────▶    given ───▶ inference ─▶ returned ──▶   codes    ──────▶ codes
"""

from contextlib import ExitStack, closing
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from engines.codes import CodeTable, ValueTable
from engines.cuda import Stream
from engines.spec import TensorSpec
from engines.trt.lane import Buffers, LaneSize, Streams
from engines.trt.mask import Mask
from engines.trt.packer import Packer
from engines.trt.unpacker import Unpacker


class Border(Protocol):
    """How the batches of a lane cross."""

    @property
    def given(self) -> np.dtype[Any]:
        """Of what is staged on the host, going in."""
        ...

    @property
    def returned(self) -> np.dtype[Any]:
        """Of what is staged on the host, coming out."""
        ...

    def enter(self, buffers: Buffers, shape: tuple[int, ...], streams: Streams) -> None:
        """Queue the way of a staged batch (n, channel, h, w) to the engine's input."""
        ...

    def leave(self, buffers: Buffers, shape: tuple[int, ...], made: tuple[int, ...], streams: Streams) -> None:
        """Queue the way of its results, of the shape `made` (n, lead, h, w), to the host."""
        ...


@dataclass(frozen=True)
class Numbers:
    """Batches cross as the engine takes and returns them."""

    given: np.dtype[Any]
    returned: np.dtype[Any]

    def enter(self, buffers: Buffers, shape: tuple[int, ...], streams: Streams) -> None:
        buffers.send(buffers.given, prod(shape) * self.given.itemsize, streams)

    def leave(self, buffers: Buffers, shape: tuple[int, ...], made: tuple[int, ...], streams: Streams) -> None:
        buffers.fetch(buffers.returned, prod(made) * self.returned.itemsize, streams)


class Codes:
    """Results are packed, and their cells masked, on the GPU; inputs are unpacked there if there is a table for it.

    Args:
        specs: of the engine.
        codes: of the results.
        values: of the input; None = it comes as numbers.
        stream: in which tables are brought to the GPU; empty afterwards.

    Raises:
        EngineError: there is no kernel for the types, or the driver does not take one.
        OutOfMemoryError: the tables do not fit.
    """

    def __init__(
        self, specs: tuple[TensorSpec, TensorSpec], codes: CodeTable, values: ValueTable | None, stream: Stream
    ) -> None:
        self._numbers = Numbers(*(np.dtype(spec.dtype) for spec in specs))
        self._unpacker: Unpacker | None = None
        self._mask: Mask | None = None
        with ExitStack() as owned:
            self._packer = owned.enter_context(closing(Packer(codes, specs[1].dtype, stream)))
            self.given, self.returned = self._numbers.given, self._packer.dtype
            if values is not None:
                self._unpacker = owned.enter_context(closing(Unpacker(values, stream)))
                self.given = self._unpacker.dtype
            if values is not None and values.missing is not None:
                mask = Mask(self.given, values.missing, self.returned, codes.fill, stream)
                self._mask = owned.enter_context(closing(mask))
            self._owned = owned.pop_all()

    @property
    def nbytes(self) -> int:
        """Of the tables on the GPU."""
        return sum(part.nbytes for part in (self._packer, self._unpacker, self._mask) if part is not None)

    def size(self, numbers: LaneSize) -> LaneSize:
        """Of a lane with room for codes, too."""
        codes = numbers.returned // self._numbers.returned.itemsize * self.returned.itemsize
        if self._unpacker is None:
            return numbers._replace(codes=codes)
        stored = numbers.given // self._numbers.given.itemsize * self.given.itemsize
        return numbers._replace(stored=stored, codes=codes)

    def enter(self, buffers: Buffers, shape: tuple[int, ...], streams: Streams) -> None:
        if self._unpacker is None:
            self._numbers.enter(buffers, shape, streams)
            return
        buffers.send(buffers.stored, prod(shape) * self.given.itemsize, streams)
        self._unpacker.unpack(buffers.stored, buffers.given, prod(shape), streams.compute)

    def leave(self, buffers: Buffers, shape: tuple[int, ...], made: tuple[int, ...], streams: Streams) -> None:
        self._packer.pack(buffers.returned, buffers.codes, prod(made), streams.compute)
        if self._mask is not None:
            self._mask.apply(buffers.stored, buffers.codes, shape, made, streams.compute)
        buffers.fetch(buffers.codes, prod(made) * self.returned.itemsize, streams)

    def prove(self, buffers: Buffers, stream: Stream) -> None:
        """Try each kernel once and compare; the buffers are free to be written meanwhile.

        Raises:
            EngineError: one gives other numbers than its table says (says how many).
        """
        self._packer.prove(buffers.returned, buffers.codes, buffers.staged_out, stream)
        if self._unpacker is not None:
            self._unpacker.prove(buffers.stored, buffers.given, buffers.staged_in, stream)
        if self._mask is not None:
            self._mask.prove(buffers.stored, buffers.codes, buffers.staged_in, stream)

    def close(self) -> None:
        """Give everything back; not while a batch crosses."""
        self._owned.close()
