"""LeCam regularisation of a discriminator (arXiv:2104.03310, section 3.2): logits stay near recent ones of the other side."""

import torch
from torch import Tensor

from worldloom.tokenizers.quantizers.ranks import ranks, sum_over_ranks

DECAY = 0.99  # of the moving averages, an update


class LeCam:
    """`E |D(x) - a_fake|^2 + E |D(xhat) - a_real|^2`, a_real and a_fake moving averages of the mean logits of the global batch."""

    def __init__(self, decay: float = DECAY) -> None:
        self.decay = decay
        self.real: float | None = None  # None until the first batch, whose means they start at
        self.fake: float | None = None

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar, by the averages of earlier batches and this one, whose means are taken in; not finite ones are not. Collective."""
        now = sum_over_ranks(torch.stack([real.detach().float().mean(), fake.detach().float().mean()])) / ranks()
        if bool(torch.isfinite(now).all()):
            self.real, self.fake = (self._moved(before, after) for before, after in zip((self.real, self.fake), now.tolist(), strict=True))
        if self.real is None or self.fake is None:
            return torch.zeros((), device=real.device)
        return (real.float() - self.fake).square().mean() + (fake.float() - self.real).square().mean()

    def state(self) -> dict[str, float | None]:
        """What must survive a stop."""
        return {"real": self.real, "fake": self.fake}

    def load_state(self, state: dict[str, float | None]) -> None:
        self.real, self.fake = state["real"], state["fake"]

    def _moved(self, before: float | None, after: float) -> float:
        return after if before is None else self.decay * before + (1 - self.decay) * after
