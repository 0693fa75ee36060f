"""Timing caches of TensorRT: what a builder learned about kernels, kept for the next build on the same GPU."""

import logging

from engines.base import EngineError
from engines.trt.builder import Journal
from engines.trt.surface import Surface, log_to

log = logging.getLogger("engines.trt")


def merge_timings(surface: Surface, kept: bytes, fresh: bytes) -> bytes:
    """Both caches in one; `fresh` alone where TensorRT cannot read the other.

    Raises:
        EngineError: TensorRT makes no builder here.
    """
    logger = surface.new_logger(Journal(log_to(log)))
    builder = surface.module.Builder(logger)
    config = builder.create_builder_config()
    if config is None:
        raise EngineError(f"{surface.flavour} {surface.version} makes no builder config")
    both, other = config.create_timing_cache(kept), config.create_timing_cache(fresh)
    is_merged = both is not None and other is not None and both.combine(other, False)
    merged = bytes(both.serialize()) if is_merged else fresh
    del both, other, config, builder, logger  # 8.6 crashes unless they go in the reverse order of their making
    return merged
