"""Models and engines: knows tensors, nothing of grids or Ray."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported: it would tell Microsoft of models
