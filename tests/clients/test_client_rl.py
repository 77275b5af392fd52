"""Agents of sb3-contrib and rsl-rl, with torch.nn's layers and with ours."""

import copy

import pytest
import torch
from client_cases import package, with_converted
from common import assert_close

import rnnkernels

pytestmark = pytest.mark.filterwarnings("ignore")


def test_recurrent_ppo_learns_the_same():
    """384 steps of CartPole, 12 updates: the same games to the step, and the same policy at the end."""
    sb3 = package("sb3_contrib")
    make_vec_env = package("stable_baselines3.common.env_util").make_vec_env
    games, policies = [], []
    for convert in (False, True):
        agent = sb3.RecurrentPPO(
            "MlpLstmPolicy", make_vec_env("CartPole-v1", 2, seed=1), n_steps=64, batch_size=64, n_epochs=2, seed=1,
            policy_kwargs={"lstm_hidden_size": 16, "n_lstm_layers": 2}, device="cpu",
        )  # fmt: skip
        if convert:
            rnnkernels.convert(agent.policy)
        agent.learn(384)
        games.append([(episode["l"], episode["r"]) for episode in agent.ep_info_buffer])
        policies.append(agent.policy.state_dict())
    assert len(games[0]) > 5 and games[1] == games[0]
    for name, expected in policies[0].items():
        assert_close(name, policies[1][name], expected, 1e-3)


@pytest.mark.parametrize("kind", ("lstm", "gru"))
def test_rsl_rl_s_model(kind):
    """Steps of a roll-out, between which states are zeroed in place, and the update over padded trajectories."""
    RNNModel = package("rsl_rl.models").RNNModel
    TensorDict = package("tensordict").TensorDict
    torch.manual_seed(0)
    steps = torch.randn(6, 4, 3)
    dones = torch.zeros(6, 4, 1)
    dones[3, 0] = dones[2, 2] = 1
    padded, masks = package("rsl_rl.utils").split_and_pad_trajectories(steps, dones)
    assert not masks.all()
    h = torch.randn(2, 1, padded.shape[1], 16)
    start = tuple(h) if kind == "lstm" else h[0]

    def observed(x):
        return TensorDict({"policy": x}, batch_size=x.shape[:-1])

    groups = {"actor": ["policy"]}
    results = []
    for model in with_converted(
        RNNModel(observed(steps[0]), groups, "actor", 2, (8,), rnn_type=kind, rnn_hidden_dim=16)
    ):
        with torch.inference_mode():
            found = []
            for x, done in zip(steps, dones, strict=True):
                found.append(model(observed(x)))
                model.reset(done.squeeze(1))
        y = model(observed(padded), masks=masks, hidden_state=start)
        y.square().sum().backward()
        script = torch.jit.script(rnnkernels.revert(copy.deepcopy(model)).as_jit())  # TorchScript takes torch.nn's only
        onnx = model.as_onnx()  # asks isinstance(rnn, nn.LSTM)
        exported = onnx(steps[0, :1], *onnx.get_dummy_inputs()[1:])
        tensors = (*found, y, *(p.grad for p in model.parameters()), script(steps[0, :1]), *exported)
        results.append([t.detach() for t in tensors if t is not None])
    for n, (expected, actual) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {n}", actual, expected)
