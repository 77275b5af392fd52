"""``rnnkernels.onnx`` for type checkers; at run time __init__.py gives the module this name."""

from .recorders.onnx import decompositions as decompositions
