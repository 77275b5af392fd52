"""Layers that are more than a cell: GRU-D's decays, EA-LSTM's static gate, Li-GRU's batch norm, in torch.nn's modules
around ``Recurrent``.

Letters: T time, B batch, D directions, H hidden, I input, A attributes, L layers.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence

from ..cells import library
from ..cells.definition import cell
from ..op.autograd import transforming
from .checks import check_lengths, check_steps, check_tensor, has_values
from .recurrent import Recurrent, check_size


def check_padded(name, input):
    """Check that the input is a tensor: the layers here would need the steps of a PackedSequence side by side."""
    if isinstance(input, PackedSequence):
        raise TypeError(f"{name} does not take a PackedSequence: pad the input and give lengths=")
    check_tensor(name, input)


class GRUD(nn.Module):
    """A GRU for series with gaps: inputs that are not there, and the state, decay with the time since the last value.

    ``delta`` is the time since an input was last there; ``gamma_x = exp(-relu(w delta + b))`` for each input, and
    ``gamma_h = exp(-relu(W delta + b))`` for the state. What is missing becomes
    ``gamma_x * last value + (1 - gamma_x) * mean``; that and the mask are the input of ``rnnkernels.cells.gru_d``.

    Z. Che, S. Purushotham, K. Cho, D. Sontag, Y. Liu (2018), Recurrent neural networks for multivariate time series
    with missing values. The reset comes after the product, as in ``torch.nn.GRU``.

    Args:
        input_size: I.
        hidden_size: H.
        mean: the mean of each input (I,), which it decays to; a buffer of the parameters' dtype. Default: zeros, for
            standardised inputs.
        batch_first: tensors are (B, T, ...) instead of (T, B, ...). Default: False
        device, dtype: of the parameters.
        **options: of :class:`rnnkernels.Recurrent` (``bias``, ``recurrent_dropout``, ``zoneout``, ``layer_norm``, ...).

    ``forward(values, mask, times=None, hx=None, lengths=None, reset=None)``:

    * values (T, B, I); those that are missing may be anything, NaN too.
    * mask, bool (T, B, I): true where a value is there.
    * times (T, B), increasing, in any unit: when the steps were. Default: 0, 1, 2, ...
    * hx (1, B, H), lengths, reset: as for :class:`rnnkernels.GRU`. ``reset`` concerns the state, not the last values.

    Returns:
        ``output`` (T, B, H) and ``h_n`` (1, B, H).
    """

    if TYPE_CHECKING:
        __call__: Callable[..., tuple[Tensor, Tensor]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        mean: Tensor | list[float] | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_size("input_size", input_size), check_size("hidden_size", hidden_size)
        if options.get("bidirectional"):
            raise ValueError("GRUD has one direction: the time since a value was last there is one that goes forward")
        kind = {"device": device, "dtype": dtype}
        self.batch_first = batch_first
        mean = torch.zeros(input_size, **kind) if mean is None else torch.as_tensor(mean, device=device)
        self.register_buffer("mean", mean.to(dtype or torch.get_default_dtype(), copy=True))
        if self.mean.shape != (input_size,):
            raise ValueError(f"mean should have shape ({input_size},), got {tuple(self.mean.shape)}")
        self.weight_decay_x = nn.Parameter(torch.empty(input_size, **kind))
        self.bias_decay_x = nn.Parameter(torch.empty(input_size, **kind))
        self.decay_h = nn.Linear(input_size, hidden_size, **kind)
        self.gru = Recurrent(library.gru_d, 2 * input_size, hidden_size, batch_first=batch_first, **kind, **options)
        bound = input_size**-0.5
        for parameter in (self.weight_decay_x, self.bias_decay_x):
            nn.init.uniform_(parameter, -bound, bound)

    def filled(self, values: Tensor, mask: Tensor, times: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The values with what is missing put in (T, B, I), and gamma_h (T, B, H); arguments as for ``forward``."""
        check_padded("GRUD", values)
        if not isinstance(mask, Tensor):
            raise TypeError(f"Expected mask to be a tensor, got {type(mask).__name__}")
        if values.dim() != 3 or mask.shape != values.shape:
            raise ValueError(
                f"expected values and mask of the same three dimensions, got {tuple(values.shape)} and "
                f"{tuple(mask.shape)}"
            )
        if mask.dtype != torch.bool:
            raise ValueError(f"mask should be a bool tensor, got {mask.dtype}")
        if values.size(2) != len(self.mean):
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {len(self.mean)}, got {values.size(2)}"
            )
        time = 1 if self.batch_first else 0
        check_steps(values.transpose(0, time))
        T = values.size(time)
        steps = torch.arange(T, device=values.device).view((1, T, 1) if self.batch_first else (T, 1, 1))
        seen = torch.where(mask, steps, -1).cummax(time).values
        before = torch.cat([seen.new_full(seen.narrow(time, 0, 1).shape, -1), seen.narrow(time, 0, T - 1)], time)
        since = before.clamp(min=0)  # without a value yet, the time since the start
        if times is None:
            delta = steps - since
        else:
            if not isinstance(times, Tensor):
                raise TypeError(f"Expected times to be a tensor, got {type(times).__name__}")
            if times.shape != values.shape[:2]:
                raise ValueError(f"times should have shape {tuple(values.shape[:2])}, got {tuple(times.shape)}")
            times = times.unsqueeze(2).expand(values.shape)
            delta = times - times.gather(time, since)  # in their own dtype: seconds since 1970 have no room in float32
        delta = delta.to(values.dtype)
        known = torch.where(mask, values, 0.0)
        last = torch.where(before < 0, self.mean, known.gather(time, since))
        gamma_x = torch.exp(-torch.relu(self.weight_decay_x * delta + self.bias_decay_x))
        x = torch.where(mask, values, gamma_x * last + (1 - gamma_x) * self.mean)
        return x, torch.exp(-torch.relu(self.decay_h(delta)))

    def forward(
        self,
        values: Tensor,
        mask: Tensor,
        times: Tensor | None = None,
        hx: Tensor | None = None,
        lengths: Tensor | list[int] | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run over a sequence; see the class."""
        x, gamma = self.filled(values, mask, times)
        return self.gru(torch.cat([x, mask.to(x.dtype)], 2), hx, lengths, reset, gamma=gamma)


class EALSTM(nn.Module):
    """An LSTM whose input gate is made of what does not change in a sequence: ``i = sigmoid(W a + b)``.

    F. Kratzert, D. Klotz, G. Shalev, G. Klambauer, S. Hochreiter, G. Nearing (2019), Towards learning universal,
    regional, and local hydrological behaviors via machine learning applied to large-sample datasets. The cell is
    ``rnnkernels.cells.ea_lstm``.

    Args:
        input_size: I, the size of the input of a step.
        static_size: A, the number of attributes of a sequence.
        hidden_size: H.
        batch_first: input and output are (B, T, ...) instead of (T, B, ...). Default: False
        device, dtype: of the parameters.
        **options: of :class:`rnnkernels.Recurrent`; layers on top of each other share the gate.

    ``forward(input, static, hx=None, lengths=None, reset=None)``: input (T, B, I), static (B, A), the others as for
    :class:`rnnkernels.LSTM`. Returns ``output`` (T, B, D*H) and ``(h_n, c_n)``.
    """

    if TYPE_CHECKING:
        __call__: Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]]

    def __init__(
        self,
        input_size: int,
        static_size: int,
        hidden_size: int,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_size("static_size", static_size), check_size("hidden_size", hidden_size)
        self.input_gate = nn.Linear(static_size, hidden_size, device=device, dtype=dtype)
        self.lstm = Recurrent(
            library.ea_lstm, input_size, hidden_size, batch_first=batch_first, device=device, dtype=dtype, **options
        )

    def forward(
        self,
        input: Tensor,
        static: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | list[int] | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over a sequence; see the class."""
        if not isinstance(static, Tensor):
            raise TypeError(f"Expected static to be a tensor, got {type(static).__name__}")
        if isinstance(input, Tensor) and input.dim() == 3:
            expected = input.size(0 if self.lstm.batch_first else 1), self.input_gate.in_features
            if static.shape != expected:
                raise RuntimeError(f"Expected static size {expected}, got {list(static.shape)}")
        return self.lstm(input, hx, lengths, reset, i=torch.sigmoid(self.input_gate(static)))


@cell(inputs="z n", recurrent="z n", project_input=False)
def normed_li_gru(x, r, s):
    """``rnnkernels.cells.li_gru`` for an input whose product is there already."""
    z, n = torch.sigmoid(x.z + r.z), torch.relu(x.n + r.n)
    return n + z * (s.h - n)


class LiGRU(nn.Module):
    """Li-GRU with the norm of the input's product that its relu needs: ``z = sigmoid(N(W_z x) + U_z h)``,
    ``n = relu(N(W_n x) + U_n h)``, ``h' = z h + (1 - z) n``.

    M. Ravanelli, P. Brakel, M. Omologo, Y. Bengio (2018), Light gated recurrent units for speech recognition. Without
    biases and with batch norm over all steps of a batch, as in the paper.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L. Default: 1
        batch_first: input and output are (B, T, ...) instead of (T, B, ...). Default: False
        dropout: probability of zeroing an element of the output of every layer but the last, in training. Default: 0
        bidirectional: D = 2 directions, each with weights and a norm of its own. Default: False
        norm: "batch" (``nn.BatchNorm1d``), "layer" (``nn.LayerNorm``), of all 2*H products at once, or None. Default:
            "batch"
        device, dtype: of the parameters.
        **options: of :class:`rnnkernels.Recurrent` (``recurrent_dropout``, ``zoneout``, ``recompute``).

    ``forward(input, hx=None, lengths=None)``: input (T, B, I), hx (L*D, B, H), lengths (B,). Padding past ``lengths``
    does not enter the norm. Returns ``output`` (T, B, D*H) and ``h_n`` (L*D, B, H).
    """

    if TYPE_CHECKING:
        __call__: Callable[..., tuple[Tensor, Tensor]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        norm: str | None = "batch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            check_size(name, size)
        if "bias" in options:
            raise TypeError("LiGRU has no biases but those of its norm: got bias=")
        if norm not in ("batch", "layer", None):
            raise ValueError(f"norm should be 'batch', 'layer' or None, got {norm!r}")
        kind = {"device": device, "dtype": dtype}
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first = batch_first
        self.D, self.dropout = 1 + bool(bidirectional), nn.Dropout(dropout)
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
        self.products, self.norms, self.layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for n in range(num_layers * self.D):
            size = input_size if n < self.D else self.D * hidden_size
            self.products.append(nn.Linear(size, 2 * hidden_size, bias=False, **kind))
            self.norms.append(norms[norm](2 * hidden_size, **kind) if norm else nn.Identity())
            self.layers.append(Recurrent(normed_li_gru, 2 * hidden_size, hidden_size, bias=False, **kind, **options))

    def forward(
        self, input: Tensor, hx: Tensor | None = None, lengths: Tensor | list[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run over a sequence; see the class."""
        check_padded("LiGRU", input)
        if input.dim() != 3:
            raise ValueError(f"LiGRU: Expected input to be 3D, got {input.dim()}D instead")
        x, last = input.transpose(0, 1) if self.batch_first else input, []
        T, B, I = x.shape  # noqa: E741
        if I != self.input_size:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {I}")
        check_steps(x)
        if hx is not None:
            if not isinstance(hx, Tensor):
                raise TypeError(f"LiGRU: argument 'hx' must be Tensor, not {type(hx).__name__}")
            if hx.shape != (expected := (len(self.layers), B, self.hidden_size)):
                raise RuntimeError(f"Expected hidden size {expected}, got {list(hx.shape)}")
        steps = torch.arange(T, device=x.device)[:, None]
        ends = T if lengths is None else check_lengths(lengths, x)
        inside = None if lengths is None else steps < ends
        if inside is not None:
            x = torch.where(inside[..., None], x, 0.0)  # no NaN of the padding in the gradients of products and norms
        if self.D > 1:
            turned = ((ends - 1 - steps) % T).expand(T, B)[..., None]  # rows turned round, up to their lengths
        for n, (product, norm, layer) in enumerate(zip(self.products, self.norms, self.layers, strict=True)):
            if n % self.D == 0:
                given, ys = self.dropout(x) if n else x, []
            wx, h = self.normed(norm, product(given), inside), None if hx is None else hx[n : n + 1]
            if n % self.D:
                y, h = layer(wx.gather(0, turned.expand_as(wx)), h, lengths)
                y = y.gather(0, turned.expand_as(y))
            else:
                y, h = layer(wx, h, lengths)
            ys.append(y), last.append(h)
            x = torch.cat(ys, 2) if self.D > 1 else y
        return x.transpose(0, 1) if self.batch_first else x, torch.cat(last)

    @staticmethod
    def normed(norm: nn.Module, wx: Tensor, inside: Tensor | None) -> Tensor:
        """The norm of products (T, B, 2*H), of the rows that are ``inside`` (T, B), or of all."""
        if not isinstance(norm, _BatchNorm):
            return norm(wx)
        if inside is None or not (norm.training or norm.running_mean is None):
            return norm(wx.flatten(0, 1)).view_as(wx)
        if type(norm) is nn.BatchNorm1d:
            return masked_batch_norm(norm, wx, inside)
        return torch.zeros_like(wx).masked_scatter(inside[..., None], norm(wx[inside]))


def masked_batch_norm(norm: nn.BatchNorm1d, wx: Tensor, inside: Tensor) -> Tensor:
    """``norm``, in training, of the rows of wx (T, B, C) that are ``inside`` (T, B), whose number graphs need not know.

    Mean and variance are sums over all rows, in which the others are zeros.
    """
    v = wx.float() if wx.dtype in (torch.bfloat16, torch.float16) else wx
    n, inside = inside.sum().to(v.dtype), inside[..., None]
    if not torch.compiler.is_compiling() and not transforming() and has_values(n) and n < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {[int(n), wx.size(2)]}")
    mean = torch.where(inside, v, 0.0).sum((0, 1)) / n
    centred = torch.where(inside, v - mean, 0.0)
    var = centred.square().sum((0, 1)) / n
    if norm.training and norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
        factor = 1.0 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.mul_(1 - factor).add_(mean.to(norm.running_mean.dtype) * factor)
            norm.running_var.mul_(1 - factor).add_((var * (n / (n - 1))).to(norm.running_var.dtype) * factor)
    out = centred * torch.rsqrt(var + norm.eps)
    if norm.affine:
        out = out * norm.weight + norm.bias
    return out.to(wx.dtype)
