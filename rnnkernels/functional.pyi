"""``rnnkernels.functional`` for type checkers; at run time __init__.py gives the module this name."""

from .nn.functional import gru as gru
from .nn.functional import lstm as lstm
from .nn.functional import recurrent as recurrent
from .nn.functional import rnn as rnn
