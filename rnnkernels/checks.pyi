"""``rnnkernels.checks`` for type checkers; at run time __init__.py gives the module this name."""

from .nn.checks import device_assertions as device_assertions
