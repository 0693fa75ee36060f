"""CUDA graphs in place of TensorRT's own queueing: an inference that comes again is launched as one piece of work."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from engines import cuda
from engines.base import DeviceLostError, EngineError, InferenceError
from engines.cuda import Graph, Stream

log = logging.getLogger("engines.trt")

SWITCH = "SQUALL_CUDA_GRAPHS"
MOST = 16  # more than there are lanes
LONGEST_WAIT = 64  # inferences: after so many of one shape more of it will come

Addresses = tuple[int, int]
Enqueue = Callable[[Stream], None]
"""Puts an inference into a stream, by TensorRT."""


class Output(Protocol):
    """Where an inference leaves its result on the GPU."""

    def digest(self) -> int:
        """Of what is there once all that was queued is done; results that differ have different ones."""
        ...

    def spoil(self) -> None:
        """Queue that what is there is overwritten by something that is no result."""
        ...


class Replay:
    """The CUDA graphs of one execution context, by the addresses of input and output on the GPU.

    The first inference between two addresses is queued by TensorRT, the second too and then captured, later ones are
    launched. So TensorRT has been through the same inference just before it is captured, as it asks for. A graph is
    kept if it then gives the same result, bit by bit. What cannot be captured is queued by TensorRT for ever. Where
    shapes take turns all may be forgotten before one is launched; each time later captures wait twice as long.

    A graph holds good for the shape, the optimization profile, the activation memory and the weights that it was
    captured with: `forget` is to be called when one of them changes. For one thread at a time.

    Args:
        is_on: False = TensorRT queues everything.
        most: addresses that are known at once; the ones used least recently are forgotten.
    """

    def __init__(self, is_on: bool = True, most: int = MOST) -> None:
        self._is_on, self._most = is_on, most
        self._graphs: OrderedDict[Addresses, Graph | int] = OrderedDict()  # a number: queued so often
        self._unused: set[Addresses] = set()  # of graphs that were not launched yet
        self._wait = 1

    def __len__(self) -> int:
        """How many graphs there are."""
        return sum(isinstance(graph, Graph) for graph in self._graphs.values())

    def queue(self, addresses: Addresses, stream: Stream, enqueue: Enqueue, output: Output) -> None:
        """Queue the inference between two addresses, the second of which is that of the output.

        Raises:
            InferenceError: of `enqueue`; a graph that fails is none.
            DeviceLostError: of either.
        """
        if not self._launch(addresses, stream):
            enqueue(stream)
            self._learn(addresses, stream, enqueue, output)

    def forget(self) -> None:
        """Destroy the graphs; what is in a stream still runs."""
        if 0 < len(self) == len(self._unused):
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        for addresses in list(self._graphs):
            self._drop(addresses)

    close = forget

    def _launch(self, addresses: Addresses, stream: Stream) -> bool:
        """False if there is no graph, or none any more."""
        graph = self._graphs.get(addresses)
        if not isinstance(graph, Graph):
            return False
        with self._or_never_again():
            graph.launch(stream)
            self._unused.discard(addresses)
            self._graphs.move_to_end(addresses)
            return True
        return False

    def _learn(self, addresses: Addresses, stream: Stream, enqueue: Enqueue, output: Output) -> None:
        """Take notice that an inference was queued; the second time or later, capture it."""
        if not self._is_on:
            return
        queued = self._graphs.get(addresses, 0)
        if isinstance(queued, int) and queued < self._wait:
            self._keep(addresses, queued + 1)
            return
        with self._or_never_again():
            self._keep(addresses, _proven(cuda.capture(enqueue), stream, output))
            self._unused.add(addresses)
        if not self._is_on:
            enqueue(stream)  # the attempt may have spoiled the result

    def _keep(self, addresses: Addresses, graph: Graph | int) -> None:
        self._graphs[addresses] = graph
        self._graphs.move_to_end(addresses)
        if len(self._graphs) > self._most:
            self._drop(next(iter(self._graphs)))

    @contextmanager
    def _or_never_again(self) -> Iterator[None]:
        try:
            yield
        except DeviceLostError:
            raise
        except EngineError as error:
            self._is_on = False
            self.forget()
            log.info("no CUDA graphs for this engine, TensorRT queues every batch: %s", error)

    def _drop(self, addresses: Addresses) -> None:
        graph = self._graphs.pop(addresses)
        self._unused.discard(addresses)
        if isinstance(graph, Graph):
            graph.close()


def _proven(graph: Graph, stream: Stream, output: Output) -> Graph:
    """The graph, once its result is known to be the one that is there now.

    Raises:
        InferenceError: it is another one; the graph is closed.
    """
    try:
        expected = output.digest()
        output.spoil()
        graph.launch(stream)
        if output.digest() != expected:
            raise InferenceError("the replay of a batch gave another result")
        return graph
    except BaseException:
        graph.close()
        raise


def is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """False if the environment switches CUDA graphs off.

    Raises:
        EngineError: the switch is neither 0 nor 1.
    """
    given = environment.get(SWITCH, "1")
    if given not in ("0", "1"):
        raise EngineError(f"the environment variable {SWITCH} is {given!r}; expected 0 or 1")
    return given == "1"
