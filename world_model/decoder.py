"""A world model that goes on token by token: matrices packed for few rows, keys and values kept, logits only for the ids asked for.

On a CPU a step of few rows is bound by reading the weights and by the cost of each small operation, so the matrices are laid out once as
oneDNN wants them, and what can be done for all layers at once is. What a row gets does not depend on its neighbours: the packed products
and the attention of a step add up in the same order for any number of rows, and the cache grows in such steps that this holds for rows
of any length, too.

B rows of T tokens at most, N tokens, D width, H query heads, K key and value heads, E width of a head, J = H + K.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import Run, runs_of
from worldloom.world_model.kernels import kernels_for
from worldloom.world_model.transformer import Block, Shape, WorldModel, rotary

Attention = Callable[[int, Tensor], Tensor]  # (layer, queries, keys and values [N, H + 2K, E]) -> [N, H E]
REACH = 64  # the cache grows by so many tokens a row
_FEW = 8  # rows that a packed matrix is laid out for


class Decoder:
    """The weights of a model in the type that they are to be used in; they are copied, so later training does not show.

    The weight of every norm is part of the matrix behind it, and 1 / sqrt(E) part of the queries' norm.
    """

    def __init__(self, model: WorldModel, dtype: torch.dtype | None = None) -> None:
        """`dtype`: of weights and cache; None takes the model's own."""
        self.model, self.shape = model, model.shape
        self.dtype = model.output.dtype if dtype is None else dtype
        self.device = model.output.device
        with torch.no_grad():
            self.layers = [_Layer(cast(Block, block), self.dtype) for block in model.blocks]
            self.embedding = model.embedding.detach().to(self.dtype)
            if self.shape.ahead:  # ids beyond the vocabulary: nothing seen, then what `look` is given
                self.embedding = torch.cat([self.embedding, model.unseen.detach().to(self.dtype).expand(self.shape.ahead, -1)])
            self.output = _behind(model.norm, model.output).to(self.dtype)
        self._eps = torch.tensor(self.shape.norm_eps, device=self.device)
        self._cos = self._sin = torch.empty(0, 0)
        self.kernels = kernels_for(self.dtype, self.device, self.shape.head_width)
        self._rows: dict[tuple[range, ...], _Matrix] = {}

    @torch.no_grad()
    def look(self, seen: Tensor) -> list[int]:
        """Ids that stand for vectors [ahead, W] ahead of <bos>, until `forget`."""
        if seen.shape != (self.shape.ahead, self.shape.seen_width):
            raise ValueError(
                f"this world sees {self.shape.ahead} vectors of {self.shape.seen_width} numbers, got {tuple(seen.shape)}; "
                f"take the encoder that it learnt with"
            )
        first = len(self.embedding)
        self.embedding = torch.cat([self.embedding, self.model.look(seen.to(self.device)).to(self.dtype)])
        return list(range(first, len(self.embedding)))

    def forget(self) -> None:
        """Frees what `look` was given."""
        self.embedding = self.embedding[: self.shape.vocab_size + self.shape.ahead]

    def through(self, tokens: Tensor, positions: Tensor, reach: int, attention: Attention) -> Tensor:
        """Hidden states [N, D] of `tokens` [N] at `positions` [N], all below `reach`: normed as WorldModel's are, but not weighted."""
        turn = self._turn(positions, reach)
        x = F.embedding(tokens, self.embedding)
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(self._normed(x)).view(len(x), -1, self.shape.head_width)
            turn(qkv, layer.head_norm)
            x = layer.out.added(attention(number, qkv), x)
            x = layer.down.added(self._gated(layer.gate_up(self._normed(x))), x)
        return self._normed(x)

    def logits(self, hidden: Tensor, ids: tuple[range, ...]) -> Tensor:
        """fp32 logits [B, n] of `ids`, in their order, for hidden states [B, D] as the cache gives them."""
        if ids not in self._rows:
            parts = [self.output[one.start : one.stop] for one in ids]
            self._rows[ids] = _Matrix(parts[0] if len(parts) == 1 else torch.cat(parts))
        return self._rows[ids](hidden).float()

    def _normed(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + eps) of [N, D]."""
        if self.kernels is not None:
            return self.kernels.norm(x, self.shape.norm_eps)
        return torch.mul(x, self._scale(x), out=torch.empty_like(x))

    def _gated(self, gate_up: Tensor) -> Tensor:
        """silu(gate) up, [N, F] from [N, 2F]."""
        if self.kernels is not None:
            return self.kernels.gate(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def _turn(self, positions: Tensor, reach: int) -> Callable[[Tensor, Tensor], None]:
        """What norms queries and keys of [N, J + K, E], weighs them by [J, E] and turns them to `positions`, in place."""
        cos, sin = self._turns(reach)
        J, E, kernels, eps = self.shape.heads + self.shape.kv_heads, self.shape.head_width, self.kernels, self.shape.norm_eps
        if kernels is not None:
            return lambda qkv, weights: kernels.turn(qkv, weights, cos, sin, positions, eps)
        # A feature of a head times one, plus its partner times the other, is weighted and turned.
        straight, crossed = (torch.cat([low, high], dim=-1)[positions][:, None] for low, high in ((cos, cos), (-sin, sin)))

        def turn(qkv: Tensor, weights: Tensor) -> None:
            heads = qkv[:, :J]
            partners = heads.roll(E // 2, -1)
            turned = torch.addcmul(heads * (straight * weights), partners, crossed * weights.roll(E // 2, -1))
            torch.mul(turned, self._scale(heads), out=heads)

        return turn

    def _scale(self, x: Tensor) -> Tensor:
        """1 / sqrt(mean(x^2) + eps), fp32 [..., 1]."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()

    def _turns(self, reach: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least `reach` positions, fp32 [.., E/2]."""
        if len(self._cos) < reach:
            places = torch.arange(max(reach, 2 * len(self._cos)), device=self.device)
            self._cos, self._sin = (
                table[:, 0].contiguous() for table in rotary(places, self.shape.head_width, self.shape.rope_theta, torch.float32)
            )
        return self._cos, self._sin


class Cache:
    """The keys and values of B rows, and the way through the layers that adds to them."""

    def __init__(self, decoder: Decoder, rows: int) -> None:
        self.decoder, self.rows, self.length = decoder, rows, 0
        shape = decoder.shape
        # [2, B, K, T, E] a layer: keys, then values. Zeros where nothing is yet, because what a mask hides is still multiplied by 0.
        size = (2, rows, shape.kv_heads, 0, shape.head_width)
        self.kept = [torch.zeros(size, dtype=decoder.dtype, device=decoder.device) for _ in range(shape.depth)]
        self._heads = torch.empty(0, dtype=torch.int64)
        self._grow(REACH)

    def begin(self, documents: Sequence[Sequence[int]]) -> Tensor:
        """Takes the first tokens of every row, at least one each, whatever was there; hidden states [B, D] behind the last of each."""
        lengths = torch.tensor([len(tokens) for tokens in documents])
        self._grow(int(lengths.max()))
        order = torch.argsort(lengths, stable=True)
        device = self.decoder.device
        rows = order.repeat_interleave(lengths[order]).to(device)
        positions = torch.cat([torch.arange(length) for length in lengths[order].tolist()]).to(device)
        tokens = torch.tensor([token for row in order.tolist() for token in documents[row]]).to(device)
        attention = _Prefill(self, self.slots(rows, positions), runs_of(lengths[order].numpy()))
        hidden = self.decoder.through(tokens, positions, self.length, attention)
        last = torch.empty(len(documents), dtype=torch.int64)
        last[order] = lengths[order].cumsum(0) - 1
        return hidden[last.to(device)]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Takes one token more in every row, [B] at `positions` [B]; hidden states [B, D]."""
        return self.go_on(tokens[:, None], positions[:, None], int(positions.max()) + 1)

    def go_on(self, tokens: Tensor, positions: Tensor, reach: int) -> Tensor:
        """Takes Q tokens more in every row, [B, Q] at `positions` [B, Q], all below `reach`; hidden states [B, D] behind the last of each.

        A token sees its row up to itself, and nothing of what stands behind that from before.
        """
        self._grow(reach)
        attention = (_Step if self.decoder.kernels is None else _CompiledStep)(self, positions)
        hidden = self.decoder.through(tokens.flatten(), positions.flatten(), self.length, attention)
        return hidden.view(*tokens.shape, -1)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but `rows` (int64, in the new order)."""
        self.kept = [kept[:, rows] for kept in self.kept]
        self.rows = len(rows)
        self._lay_out()

    def _grow(self, length: int) -> None:
        """Makes room for `length` tokens a row. The room is always all looked at, so that it is one piece of memory."""
        if length <= self.length:
            return
        more = -(-length // REACH) * REACH - self.length
        self.kept = [F.pad(kept, (0, 0, 0, more)) for kept in self.kept]
        self.length += more
        self._lay_out()

    def _lay_out(self) -> None:
        """Where the keys, then the values of a row's heads begin, [2K], in tokens."""
        K = self.decoder.shape.kv_heads
        heads = torch.arange(2 * K, device=self.decoder.device)
        self._heads = (heads // K * self.rows * K + heads % K) * self.length

    def slots(self, rows: Tensor, positions: Tensor) -> Tensor:
        """int64 [N 2K]: where the keys and the values of N tokens go."""
        first = rows * (self.decoder.shape.kv_heads * self.length) + positions
        return (first[:, None] + self._heads).flatten()


class _Layer:
    """One block's weights."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self.qkv = _Matrix(_behind(block.attention_norm, block.qkv).to(dtype))
        self.out = _Matrix(block.out.detach().to(dtype))
        self.gate_up = _Matrix(_behind(block.ff_norm, block.gate_up).to(dtype))
        self.down = _Matrix(block.down.detach().to(dtype))
        query, key = block.query_norm.detach().float() / sqrt(len(block.query_norm)), block.key_norm.detach().float()
        self.head_norm = torch.cat([query.expand(block.heads, -1), key.expand(block.kv_heads, -1)]).contiguous()  # fp32 [J, E]


class Whole:
    """Whole documents one behind the other, each seeing itself."""

    def __init__(self, shape: Shape, runs: Sequence[Run]) -> None:
        self.kv_heads, self.attention = shape.kv_heads, PackedAttention(runs, scale=1.0)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        return self.attention(layer, qkv, self.kv_heads).flatten(1)


class _Prefill:
    """Documents that begin: what they attend to is all there, and is kept for what follows."""

    def __init__(self, cache: Cache, slots: Tensor, runs: Sequence[Run]) -> None:
        self.cache, self.slots, self.attention = cache, slots, Whole(cache.decoder.shape, runs)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        shape = self.cache.decoder.shape
        self.cache.kept[layer].view(-1, shape.head_width).index_copy_(0, self.slots, qkv[:, shape.heads :].reshape(-1, shape.head_width))
        return self.attention(layer, qkv)


class _Step:
    """Q tokens of every row against all that its row has kept: softmax(q k) v, [B Q, H E]."""

    def __init__(self, cache: Cache, positions: Tensor) -> None:
        """`positions` [B, Q]."""
        self.cache = cache
        B, Q = positions.shape
        device = positions.device
        self.slots = cache.slots(torch.arange(B, device=device).repeat_interleave(Q), positions.flatten())
        seen = torch.arange(cache.length, device=device) <= positions[:, :, None]
        # 0 where a key may be seen and -inf elsewhere.
        self.unseen = torch.zeros(B, 1, Q, 1, cache.length, dtype=cache.decoder.dtype, device=device)
        self.unseen.masked_fill_(~seen[:, None, :, None], -torch.inf)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        cache, shape = self.cache, self.cache.decoder.shape
        B, Q, H, K, E = cache.rows, self.unseen.shape[2], shape.heads, shape.kv_heads, shape.head_width
        cache.kept[layer].view(-1, E).index_copy_(0, self.slots, qkv[:, H:].reshape(-1, E))
        keys, values = cache.kept[layer].view(2, B * K, cache.length, E)
        query = qkv[:, :H].reshape(B, Q, K, H // K, E).transpose(1, 2).reshape(B * K, -1, E)
        scores = torch.bmm(query, keys.transpose(1, 2))
        scores.view(B, K, Q, H // K, cache.length).add_(self.unseen)
        mixed = torch.bmm(torch.softmax(scores, dim=-1), values)
        return mixed.view(B, K, Q, -1).transpose(1, 2).reshape(B * Q, H * E)


class _CompiledStep:
    """The same by a compiled kernel, which looks at no more than there is."""

    def __init__(self, cache: Cache, positions: Tensor) -> None:
        assert cache.decoder.kernels is not None
        self.cache, self.positions, self.kernels = cache, positions.contiguous(), cache.decoder.kernels
        self.scores = torch.empty(positions.numel() * cache.decoder.shape.heads * cache.length)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        return self.kernels.attend(qkv, self.cache.kept[layer], self.positions, self.scores)


class _Matrix:
    """x -> x weight^T, for `weight` [out, in]; packed on a CPU where torch has oneDNN."""

    def __init__(self, weight: Tensor) -> None:
        mkldnn = torch.ops.mkldnn
        packs = weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32) and hasattr(mkldnn, "_linear_pointwise")
        self.packed = packs and (weight.dtype == torch.float32 or mkldnn._is_mkldnn_bf16_supported())
        self.weight = mkldnn._reorder_linear_weight(weight.contiguous(), _FEW) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "") if self.packed else F.linear(x, self.weight)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """x weight^T + to."""
        if not self.packed:
            return to + F.linear(x, self.weight)
        added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, to, self.weight, None, "add")
        return added


def _behind(norm: Tensor, matrix: Tensor) -> Tensor:
    """fp32: the matrix that the weight of the norm before it is part of."""
    return matrix.detach().float() * norm.detach().float()
