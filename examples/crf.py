"""A linear-chain conditional random field: the likeliest sequence of tags instead of the likeliest tag of each step.

A sequence y of K possible tags is scored by emissions e, of each step, and by transitions A, of each pair of
successive tags, and its probability is the softmax over all K^T sequences (Lafferty et al. 2001, "Conditional random
fields"; on a BiLSTM: Huang et al. 2015, Lample et al. 2016):

    score(y) = start[y_1] + sum_t e[t, y_t] + sum_t A[y_(t-1), y_t] + end[y_T]
    log p(y) = score(y) - log sum_y' exp score(y')

Both the sum over y' (the forward algorithm) and the best y (Viterbi's) take T steps of K x K numbers instead of K^T.

B batch, T steps, K tags. Rows may have different lengths; nothing past a row's length counts.
"""

import torch
from torch import Tensor, nn

IMPOSSIBLE = -1e4  # instead of minus infinity, of which gradients are not numbers


class CRF(nn.Module):
    """Transitions between K tags, with the likelihood of tag sequences and the likeliest sequence.

    Args:
        tags: K.
        allowed_KK: bool, true where the tag of a column may follow that of a row. Default: all
        allowed_first_K: bool, true for tags with which a sequence may begin. Default: all
    """

    def __init__(self, tags: int, allowed_KK: Tensor | None = None, allowed_first_K: Tensor | None = None) -> None:
        super().__init__()
        self.start_K = nn.Parameter(torch.zeros(tags))
        self.transitions_KK = nn.Parameter(torch.zeros(tags, tags))  # from row to column
        self.end_K = nn.Parameter(torch.zeros(tags))
        self.register_buffer("allowed_KK", torch.ones(tags, tags).bool() if allowed_KK is None else allowed_KK)
        self.register_buffer("allowed_first_K", torch.ones(tags).bool() if allowed_first_K is None else allowed_first_K)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Of first tags, (K,), and of transitions, (K, K)."""
        return (
            self.start_K.masked_fill(~self.allowed_first_K, IMPOSSIBLE),
            self.transitions_KK.masked_fill(~self.allowed_KK, IMPOSSIBLE),
        )

    def forward(self, emissions_BTK: Tensor, tags_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The negative log-likelihood of each row's tags, (B,); 0 for a row of length 0."""
        loss_B = self.log_partition(emissions_BTK, lengths_B) - self.score(emissions_BTK, tags_BT, lengths_B)
        return torch.where(lengths_B > 0, loss_B, 0)

    def score(self, emissions_BTK: Tensor, tags_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The unnormalised log-probability of tags, (B,)."""
        start_K, transitions_KK = self.weights()
        valid_BT = valid(emissions_BTK, lengths_B)
        emitted_BT = emissions_BTK.gather(2, tags_BT.unsqueeze(-1)).squeeze(-1)
        moved_BT = transitions_KK[tags_BT[:, :-1], tags_BT[:, 1:]]
        last_B1 = tags_BT.gather(1, (lengths_B - 1).clamp(min=0).unsqueeze(-1))
        inside_B = (emitted_BT * valid_BT).sum(1) + (moved_BT * valid_BT[:, 1:]).sum(1)
        return start_K[tags_BT[:, 0]] + inside_B + self.end_K[last_B1.squeeze(-1)]

    def log_partition(self, emissions_BTK: Tensor, lengths_B: Tensor) -> Tensor:
        """The log of the sum over all sequences, (B,); alpha is that of all beginnings which end in each tag."""
        start_K, transitions_KK = self.weights()
        valid_BT = valid(emissions_BTK, lengths_B)
        alpha_BK = start_K + emissions_BTK[:, 0]
        for t in range(1, emissions_BTK.shape[1]):
            longer_BK = (alpha_BK.unsqueeze(2) + transitions_KK).logsumexp(1) + emissions_BTK[:, t]
            alpha_BK = torch.where(valid_BT[:, t, None], longer_BK, alpha_BK)
        return (alpha_BK + self.end_K).logsumexp(1)

    @torch.no_grad()
    def decode(self, emissions_BTK: Tensor, lengths_B: Tensor) -> Tensor:
        """The likeliest tags, (B, T), 0 past each length: Viterbi, the forward algorithm with max in place of sum."""
        B, T, K = emissions_BTK.shape
        start_K, transitions_KK = self.weights()
        valid_BT = valid(emissions_BTK, lengths_B)
        best_BK = start_K + emissions_BTK[:, 0]
        stay_BK = torch.arange(K, device=emissions_BTK.device).expand(B, K)
        before = []  # of each tag at each step: the best tag before it
        for t in range(1, T):
            longer_BK, from_BK = (best_BK.unsqueeze(2) + transitions_KK).max(1)
            best_BK = torch.where(valid_BT[:, t, None], longer_BK + emissions_BTK[:, t], best_BK)
            before.append(torch.where(valid_BT[:, t, None], from_BK, stay_BK))
        path = [(best_BK + self.end_K).argmax(1, keepdim=True)]
        for from_BK in reversed(before):
            path.append(from_BK.gather(1, path[-1]))
        return torch.cat(path[::-1], dim=1) * valid_BT


def valid(x_BTK: Tensor, lengths_B: Tensor) -> Tensor:
    """The mask of the steps within each row's length, (B, T)."""
    return torch.arange(x_BTK.shape[1], device=x_BTK.device) < lengths_B.unsqueeze(1)
