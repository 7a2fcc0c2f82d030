"""What a trained model lacks to stay legal without its grammar: a vector for each set of ids, added to their rows of the output layer.

Ids between which a place may choose are of one set. A vector added to all rows of a set leaves every softmax among its ids as it is, and
so all that is drawn under the grammar; how likely the set is against the others it changes. The vectors are a logistic regression on the
hidden states, fitted behind the training by L-BFGS: what the model knows is not touched, and this it learns in seconds.

n labels, D width, V vocabulary, G sets.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import Choice, Example
from worldloom.world_model.loss import parts_of
from worldloom.world_model.transformer import WorldModel

CHUNK = 1 << 22  # logits held at a time
ITERATIONS = 60
DECAY = 1e-4  # of the vectors' squared length: they stay as short as the rows that they are added to


class LegalMass(NamedTuple):
    """Geometric mean over labels of the probability that all legal ids have together."""

    before: float
    after: float


class _Labels(NamedTuple):
    hidden: Tensor  # fp32 [n, D]
    sets: Tensor  # fp32 [n, G]: log of the sum of a set's exponentials of logits
    legal: Tensor  # fp32 [n]: that of the legal ids
    mine: Tensor  # int64 [n]: their set


@torch.no_grad()
def fit_legal_offsets(model: WorldModel, examples: Iterable[tuple[Example, Tensor | None]]) -> LegalMass:
    """Adds to `model.output`, in place, what makes labels with a softmax over all ids legal; `examples` with what is seen beside each.

    ValueError for a model whose output layer is its embedding: its rows mean something else as well.
    """
    if model.shape.tied:
        raise ValueError("the model's output layer is its embedding (tied); offsets would change what its tokens mean")
    taken = [(example, _hidden(model, example, seen)) for example, seen in examples]
    full = [(choice, hidden) for example, hidden in taken for choice in example.choices if choice.legal and len(choice.places)]
    if not full:
        return LegalMass(1.0, 1.0)
    set_V = sets_of(model.shape.vocab_size, [choice for choice, _ in full]).to(model.output.device)
    found = [_labels(model, choice, hidden[choice.places], set_V) for choice, hidden in full]
    labels = _Labels(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    offsets_GD = torch.zeros(int(set_V.max()) + 1, labels.hidden.shape[1], device=set_V.device)
    before = _surprise(offsets_GD, labels)
    _minimise(offsets_GD, labels)
    model.output.add_(offsets_GD[set_V].to(model.output.dtype))
    return LegalMass(*(float((-nats).exp()) for nats in (before, _surprise(offsets_GD, labels))))


def sets_of(size: int, choices: Sequence[Choice]) -> Tensor:
    """int64 [size]: the number of every id's set; ids that are legal at one place are of one set, and an id that never is has its own."""
    set_V = np.arange(size)
    for ranges in sorted({legal.ranges for choice in choices for legal in choice.legal if legal.ranges}):
        together = np.unique(np.concatenate([set_V[first:last] for first, last in ranges]))
        set_V[np.isin(set_V, together)] = together[0]
    return torch.from_numpy(np.unique(set_V, return_inverse=True)[1].astype(np.int64))


def _hidden(model: WorldModel, example: Example, seen: Tensor | None) -> Tensor:
    return model(example.inputs, example.positions, PackedAttention(example.runs), seen)  # type: ignore[no-any-return]


def _labels(model: WorldModel, choice: Choice, hidden_nD: Tensor, set_V: Tensor) -> _Labels:
    found = []
    rows = max(1, CHUNK // len(set_V))
    for at in range(0, len(hidden_nD), rows):
        hidden = hidden_nD[at : at + rows]
        logits = model.logits(hidden)
        highest = logits.amax(1, keepdim=True)
        sums = torch.zeros(len(hidden), int(set_V.max()) + 1, device=logits.device).index_add_(1, set_V, (logits - highest).exp())
        labels = choice.labels[at : at + rows]
        legal, mine = torch.empty_like(logits[:, 0]), set_V[labels]
        for part, ids in parts_of(choice, at, at + len(hidden)):
            if not ids.ranges:
                legal[part] = logits[part].gather(1, labels[part, None])[:, 0]
                continue
            among = torch.cat([logits[part, first:last] for first, last in ids.ranges], dim=1)
            legal[part] = (among if ids.allowed is None else among.masked_fill(~ids.allowed, -torch.inf)).logsumexp(1)
        # A set all of whose exponentials vanish beside the highest one is as unlikely as fp32 can say.
        found.append(_Labels(hidden.float(), sums.clamp(min=torch.finfo(sums.dtype).tiny).log() + highest, legal, mine))
    return _Labels(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _surprise(offsets_GD: Tensor, labels: _Labels) -> Tensor:
    """Mean over labels of -log of the probability of all legal ids together, nats."""
    offsets_nG = labels.hidden @ offsets_GD.t()
    mine = offsets_nG.gather(1, labels.mine[:, None])[:, 0]
    return ((labels.sets + offsets_nG).logsumexp(1) - labels.legal - mine).mean()


def _minimise(offsets_GD: Tensor, labels: _Labels) -> None:
    search = torch.optim.LBFGS([offsets_GD], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> float:
        with torch.enable_grad():
            value = _surprise(offsets_GD, labels) + DECAY * offsets_GD.square().sum()
            (offsets_GD.grad,) = torch.autograd.grad(value, offsets_GD)
        return float(value.detach())

    offsets_GD.requires_grad_()
    search.step(loss)  # type: ignore[no-untyped-call]
    offsets_GD.requires_grad_(False)
