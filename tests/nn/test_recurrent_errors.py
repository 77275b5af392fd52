"""Wrong calls of ``Recurrent``, ``RecurrentCell`` and ``functional.recurrent``: what was expected, and what came."""

import re

import pytest
import torch
from recurrent_cases import lstm

import rnnkernels

X3, SPARSE = torch.randn(3, 2, 5), torch.ones(3, 2, 4).to_sparse()
WRONG = {
    "no number of states": (lambda: rnnkernels.RecurrentCell(lstm, 5, 4)(X3[0], 3), TypeError, "not int"),
    "numbers as states": (lambda: rnnkernels.RecurrentCell(rnnkernels.cells.lstm, 5, 4)(X3[0], [1, 2]),
                          TypeError, "argument 'hx' must have Tensors, not int"),
    "a number as input": (lambda: rnnkernels.RecurrentCell(rnnkernels.cells.gru_d, 5, 4)(X3[0], gamma=1.0),
                          TypeError, "Expected gamma to be a tensor, got float"),
    "no input": (lambda: rnnkernels.RecurrentCell(rnnkernels.cells.gru_d, 5, 4)(X3[0], gamma=None),
                 TypeError, "forward() missing the input 'gamma'"),
    "a sparse input": (lambda: rnnkernels.Recurrent(rnnkernels.cells.gru_d, 5, 4)(X3, gamma=SPARSE),
                       TypeError, "Expected gamma to be a dense tensor, got torch.sparse_coo"),
    "sparse x": (lambda: rnnkernels.Recurrent(lstm, 5, 4)(X3.to_sparse()),
                 TypeError, "Expected the input to be a dense tensor, got layout torch.sparse_coo"),
    "complex": (lambda: rnnkernels.Recurrent(lstm, 5, 4).to(torch.complex64)(X3.to(torch.complex64)),
                TypeError, "of float64, float32, bfloat16 or float16, but got torch.complex64"),
    "a constant that is text": (lambda: rnnkernels.Recurrent(rnnkernels.cells.leaky_rnn, 5, 4, alpha="a"),
                                TypeError, "leaky_rnn: expected the constant alpha to be a number, got str"),
    "torch's class": (lambda: rnnkernels.Recurrent(torch.nn.LSTM, 5, 4),
                      TypeError, "cell should be a cell of rnnkernels, got: type"),
    "no layers": (lambda: rnnkernels.functional.recurrent(lstm, X3, None, [], num_layers=0),
                  ValueError, "num_layers must be greater than zero, got 0"),
    "of a function": (lambda: rnnkernels.functional.gru(X3, None, [], num_layers=0),
                      ValueError, "num_layers must be greater than zero, got 0"),
    "vectors as weights": (lambda: rnnkernels.functional.gru(X3, None, [torch.ones(12)] * 4),
                           RuntimeError, "Expected RNN parameter 0 to have 2 dimensions, got shape (12,)"),
    "no tensors": (lambda: rnnkernels.functional.gru(X3, None, [1, 2, 3, 4]),
                   TypeError, "Expected RNN parameter 0 to be a tensor of 1 to 3 dimensions, got int"),
    "states of a layer": (lambda: rnnkernels.Recurrent(lstm, 5, 4)(X3, (None, None)),
                          TypeError, "lstm: argument 'hx' must have Tensors, not NoneType"),
    "a tuple for one": (lambda: rnnkernels.Recurrent(rnnkernels.cells.mgu, 5, 4)(X3, (X3,)),
                        TypeError, "mgu: argument 'hx' must be Tensor, not tuple"),
    "states of a function": (lambda: rnnkernels.functional.recurrent(rnnkernels.cells.mgu, X3, 3, []),
                             TypeError, "mgu: argument 'hx' must be Tensor, not int"),
    "a list as x": (lambda: rnnkernels.Recurrent(lstm, 5, 4)([1]),
                    TypeError, "Recurrent: Expected input to be a tensor, got list"),
    "a cell's list": (lambda: rnnkernels.RecurrentCell(lstm, 5, 4)([1]),
                      TypeError, "RecurrentCell: Expected input to be a tensor, got list"),
    "packed": (lambda: rnnkernels.functional.gru(torch.nn.utils.rnn.pack_sequence([X3[:, 0]]), None, []),
               TypeError, "Expected input to be a tensor, got PackedSequence: pad it and give lengths="),
    "states to restart from": (lambda: rnnkernels.GRU(5, 4)(X3, reset=(X3[..., 0] > 0, 1)),
                               TypeError, "Expected the states of 'reset' to be tensors, but got int"),
    "a state to restart from": (lambda: rnnkernels.LSTM(5, 4)(X3, reset=(X3[..., 0] > 0, (None, None))),
                                TypeError, "Expected the states of 'reset' to be tensors, but got NoneType"),
    "a step input with steps": (lambda: rnnkernels.RecurrentCell(rnnkernels.cells.gru_d, 5, 4)(X3[0], gamma=X3),
                                RuntimeError, "For batched input, gamma should be 2-D but got 3-D tensor"),
    "a step input's size": (lambda: rnnkernels.RecurrentCell(rnnkernels.cells.gru_d, 5, 4)(X3[0], gamma=X3[0]),
                            RuntimeError, "Expected gamma size (2, 4), got [2, 5]"),
    "of a Stepper": (lambda: rnnkernels.Stepper(rnnkernels.Recurrent(rnnkernels.cells.gru_d, 5, 4), 2).step(
                         X3[0], gamma=X3), RuntimeError, "gamma should be 2-D but got 3-D tensor"),
    "a cell's state": (lambda: rnnkernels.RecurrentCell(rnnkernels.cells.mgu, 5, 4)(X3[0], X3[:, 0]),
                       RuntimeError, "Input batch size 2 doesn't match hidden0 batch size 3"),
    "a cell's input": (lambda: rnnkernels.RecurrentCell(rnnkernels.cells.mgu, 3, 4)(X3[0]),
                       RuntimeError, "input has inconsistent input_size: got 5 expected 3"),
    "init by name": (lambda: rnnkernels.Recurrent(lstm, 5, 4, init="zeros"),
                     TypeError, "init should be a function of the name and the parameter, got: str"),
    "torch.jit.script": (lambda: torch.jit.script(rnnkernels.Recurrent(lstm, 5, 4)),
                         RuntimeError, "cannot compile Recurrent of rnnkernels, which torch.nn does not have"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.filterwarnings("ignore")  # of complex modules, sparse tensors and torch.jit
def test_errors_say_what_was_expected_and_what_came(case):
    call, kind, text = WRONG[case]
    with pytest.raises(kind, match=re.escape(text)):
        call()
