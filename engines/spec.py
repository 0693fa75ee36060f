"""Frozen values that describe an engine's tensors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """An I/O tensor: its name, numpy dtype name and shape; None stands for a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """True if an array of this shape fits.

        >>> TensorSpec("x", "float32", (None, 4, None, None)).accepts((2, 4, 256, 256))
        True
        """
        return len(shape) == len(self.shape) and all(
            want in (None, have) for want, have in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype} ({axes})"
