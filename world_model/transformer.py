"""The transformer: pre-norm, RMSNorm, rotary positions, grouped queries, SwiGLU, norm on queries and keys: the graph of Qwen3.

Mixed streams diverge without the norm on queries and keys (Chameleon, arXiv:2405.09818). A trained model is a plain Qwen3ForCausalLM.

N positions, D width, H query heads, K key and value heads, E width of a head, F width of the feed-forward layer, V vocabulary.
"""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from worldloom.world_model.attention import Attention, PackedAttention
from worldloom.world_model.example import Example
from worldloom.world_model.fused import norm_and_rotate, rms_norm, swiglu
from worldloom.world_model.loss import Losses, cross_entropy


@dataclass(frozen=True)
class Shape:
    """What decides the parameters' shapes and their graph."""

    vocab_size: int
    width: int = 256
    depth: int = 6
    heads: int = 4
    kv_heads: int = 4
    ff: int = 704
    head_width: int = 64
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tied: bool = False  # one matrix for the token embedding and the output layer
    ahead: int = 0  # places ahead of <bos> that hold what is seen
    seen_width: int = 0  # numbers of a vector that is seen

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_width % 2:
            raise ValueError(f"head_width ({self.head_width}) must be even: rotary positions turn pairs of features")


class WorldModel(nn.Module):
    """Integers in, integers out; where something is seen, ids from vocab_size on are the rows of what is given beside them."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        """Weights are drawn from `generator`, which lives on the CPU: N(0, 0.02), smaller where a layer writes to the residual."""
        super().__init__()
        self.shape = shape
        self.recompute = False  # whether training keeps only what goes into a block, and computes the rest of it again on the way back
        self.embedding = nn.Parameter(torch.empty(shape.vocab_size, shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.Parameter(torch.ones(shape.width))
        self.output = self.embedding if shape.tied else nn.Parameter(torch.empty(shape.vocab_size, shape.width))
        if shape.ahead:
            self.seen = nn.Parameter(torch.empty(shape.width, shape.seen_width))
            self.unseen = nn.Parameter(torch.zeros(shape.width))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2:
                    to_residual = name.endswith((".out", ".down"))
                    parameter.normal_(std=0.02 / sqrt(2 * shape.depth) if to_residual else 0.02, generator=generator)

    def forward(self, tokens: Tensor, positions: Tensor, attention: Attention, seen: Tensor | None = None) -> Tensor:
        """Hidden states [N, D], normed, of `tokens` [N] at `positions` [N] within their documents; `seen` [R, W] as in `look`."""
        x = self._embedded(tokens, seen) if self.shape.ahead else F.embedding(tokens, self.embedding)
        rotation = rotary(positions, self.shape.head_width, self.shape.rope_theta, x.dtype)
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, layer, attention, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, rotation, layer, attention)
        return rms_norm(x, self.norm, self.shape.norm_eps)

    def look(self, seen: Tensor) -> Tensor:
        """[R, D]: what stands in the reserved places for vectors [R, W]; NaN where nothing is seen."""
        nothing = seen.isnan().any(1, keepdim=True)
        standard = F.layer_norm(torch.where(nothing, 0.0, seen.float()), seen.shape[1:])
        return torch.where(nothing, self.unseen, F.linear(standard.to(self.seen.dtype), self.seen))

    def _embedded(self, tokens: Tensor, seen: Tensor | None) -> Tensor:
        """[N, D]: of tokens, and of reserved places."""
        reserved = tokens >= self.shape.vocab_size
        x = F.embedding(tokens.masked_fill(reserved, 0), self.embedding)
        rows = self.unseen.expand(self.shape.ahead, -1) if seen is None else self.look(seen)
        return torch.where(reserved[:, None], F.embedding((tokens - self.shape.vocab_size).clamp(min=0), rows), x)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits [..., V] of normed hidden states [..., D]."""
        return F.linear(hidden, self.output).float()

    def losses(self, example: Example, seen: Tensor | None = None) -> Losses:
        """The loss of a whole example; `seen` as in `look`."""
        hidden = self(example.inputs, example.positions, PackedAttention(example.runs), seen)
        return cross_entropy(hidden, self.output, example.choices, example.weights)

    def operations(self, example: Example) -> int:
        """Floating-point operations of the products in one pass forward and one back (twice as many as forward).

        Those that attention leaves out because nothing of them is seen, and those of codes that cannot be, are not counted.
        """
        shape = self.shape
        heads = shape.heads * shape.head_width
        matrices = shape.width * ((2 * shape.heads + 2 * shape.kv_heads) * shape.head_width + 3 * shape.ff)
        blocks = matrices * len(example.inputs)
        for run in example.runs:
            seen = run.length * (run.length + 1) // 2 if run.causal else run.length**2
            blocks += 2 * heads * seen * run.documents
        logits = sum(len(choice.places) * sum(last - first for first, last in choice.ranges) for choice in example.choices)
        return 6 * (shape.depth * blocks + shape.width * logits)

    def settings(self) -> dict[str, Any]:
        unused = () if self.shape.ahead else ("ahead", "seen_width")
        return {name: value for name, value in asdict(self.shape).items() if name not in unused}


class Block(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x)); matrices as [out, in], no biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        D, E, H, K = shape.width, shape.head_width, shape.heads, shape.kv_heads
        self.heads, self.kv_heads, self.eps = H, K, shape.norm_eps
        self.attention_norm = nn.Parameter(torch.ones(D))
        self.qkv = nn.Parameter(torch.empty((H + 2 * K) * E, D))  # queries, keys, values
        self.query_norm = nn.Parameter(torch.ones(E))
        self.key_norm = nn.Parameter(torch.ones(E))
        self.out = nn.Parameter(torch.empty(D, H * E))
        self.ff_norm = nn.Parameter(torch.ones(D))
        self.gate_up = nn.Parameter(torch.empty(2 * shape.ff, D))  # gate, up
        self.down = nn.Parameter(torch.empty(D, shape.ff))

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], layer: int, attention: Attention) -> Tensor:
        """[N, D] from [N, D]."""
        qkv = F.linear(rms_norm(x, self.attention_norm, self.eps), self.qkv).view(
            len(x), self.heads + 2 * self.kv_heads, len(self.query_norm)
        )
        qkv = norm_and_rotate(qkv, (self.query_norm, self.key_norm), rotation, self.kv_heads, self.eps)
        x = x + F.linear(attention(layer, qkv, self.kv_heads).flatten(1), self.out)
        return x + F.linear(swiglu(F.linear(rms_norm(x, self.ff_norm, self.eps), self.gate_up)), self.down)


def rotary(positions: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [N, 1, E/2], of the angles position x theta^(-2i/E), taken in fp32 and given in no less."""
    frequencies = theta ** (-torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width)
    angles = (positions[:, None].float() * frequencies)[:, None]
    wide = torch.promote_types(dtype, torch.float32)
    return angles.cos().to(wide), angles.sin().to(wide)
