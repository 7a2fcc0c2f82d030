"""The peer of the training races: transformers' LlamaForCausalLM under DeepSpeed, as its users run it."""

import logging
import shutil
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from worldloom.stages.deepspeed_engine import _deepspeed
from worldloom.world_model.transformer import Shape


class LlamaPeer:
    """One Llama with bf16 weights, ZeRO 1 and AdamW."""

    def __init__(self, shape: Shape, length: int, compiled: bool) -> None:
        """`length`: positions that it may see; `compiled`: `engine.compile()`, which needs a C++ compiler on a CPU."""
        from transformers import LlamaConfig, LlamaForCausalLM

        logging.getLogger("transformers").setLevel(logging.ERROR)
        config = LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.width,
            intermediate_size=shape.ff,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=length,
            use_cache=False,
            tie_word_embeddings=shape.tied,
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.engine, *_ = _deepspeed().initialize(
                model=model,
                model_parameters=list(model.parameters()),
                config={
                    "train_batch_size": dist.get_world_size(),
                    "train_micro_batch_size_per_gpu": 1,
                    "gradient_clipping": 1.0,
                    "bf16": {"enabled": True},
                    "zero_optimization": {"stage": 1},
                    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.05, "torch_adam": True}},
                },
                dist_init_required=False,
            )
        if compiled:
            self.engine.compile()
        self.parameters = sum(parameter.numel() for parameter in model.parameters())

    def step(self, tokens: Tensor, labels: Tensor, mask: Tensor | None = None) -> float:
        """One update on tokens [B, T]; labels of -100 count nothing; `mask` [B, T] is 0 on padding."""
        loss: Any = self.engine(input_ids=tokens, labels=labels, attention_mask=mask).loss
        self.engine.backward(loss)
        self.engine.step()
        return float(loss.detach())


def padded(documents: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and mask, each [B, longest], of documents padded on the right."""
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = pad(list(documents), batch_first=True, padding_value=0)
    labels = pad(list(documents), batch_first=True, padding_value=-100)
    mask = pad([torch.ones_like(document) for document in documents], batch_first=True, padding_value=0)
    return tokens, labels, mask


def can_compile() -> bool:
    """Whether torch.compile finds a C++ compiler."""
    return any(map(shutil.which, ("g++", "clang++", "c++")))
