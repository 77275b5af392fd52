"""``rnnkernels.keras`` for type checkers; at run time __init__.py gives the module this name."""

from .tools.keras import export_weights as export_weights
from .tools.keras import load_weights as load_weights
