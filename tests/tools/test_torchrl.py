"""Resets in the middle of a sequence against TorchRL's LSTMModule and GRUModule, where TorchRL is installed."""

import warnings

import pytest
import torch
from common import assert_close

import rnnkernels

with warnings.catch_warnings():  # what it does when it is imported is its own affair
    warnings.simplefilter("ignore")
    why = "torchrl is not installed (pip install torchrl; extra peers-test)"
    tensordict = pytest.importorskip("tensordict", reason=why)
    modules = pytest.importorskip("torchrl.modules", reason=why)

pytestmark = pytest.mark.filterwarnings("ignore")
B, T, I, H = 3, 9, 4, 5  # noqa: E741 - the letters of modules.py


@pytest.mark.parametrize("restart", (False, True), ids=["zeros", "states"])
@pytest.mark.parametrize("layers", (1, 2))
@pytest.mark.parametrize("name", ("LSTM", "GRU"))
def test_resets_are_torchrl_s(name, layers, restart):
    """Outputs, final states and every gradient, with episodes that begin anywhere.

    TorchRL begins an episode with the states that lie beside its first step: zeros, or any others.
    """
    keys = ["h", "c"] if name == "LSTM" else ["h"]
    torch.manual_seed(0)
    theirs = getattr(modules, f"{name}Module")(
        input_size=I, hidden_size=H, num_layers=layers, in_keys=["x", *keys],
        out_keys=["y", *(("next", k) for k in keys)],
    )  # fmt: skip
    core = getattr(theirs, name.lower())
    ours = getattr(rnnkernels, name)(I, H, layers, batch_first=True)
    ours.load_state_dict(core.state_dict())
    x, first, hx = torch.randn(B, T, I), torch.rand(B, T) < 0.3, [torch.randn(B, layers, H) for _ in keys]
    along = {k: s[:, None].expand(B, T, layers, H) for k, s in zip(keys, hx, strict=True)}
    if not restart:
        along = {k: torch.where(first[..., None, None], 0.0, s) for k, s in along.items()}
    data = tensordict.TensorDict({"x": x, "is_init": first[..., None], **along}, [B, T])
    with modules.set_recurrent_mode(True):
        out = theirs(data)
    states = tuple(s.transpose(0, 1) for s in hx)
    states = states if name == "LSTM" else states[0]
    y, last = ours(x, states, reset=(first, states) if restart else first)
    assert_close("y", y, out["y"])
    for k, s in zip(keys, last if name == "LSTM" else (last,), strict=True):
        assert_close(k, s.transpose(0, 1), out["next", k][:, -1])
    y.sin().sum().backward()
    out["y"].sin().sum().backward()
    for (key, p), e in zip(ours.named_parameters(), core.parameters(), strict=True):
        assert_close(f"gradient of {key}", p.grad, e.grad)
    assert not torch.allclose(ours(x, states)[0], y)  # the resets count
