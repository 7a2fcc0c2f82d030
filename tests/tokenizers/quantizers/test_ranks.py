"""Two ranks with half a batch each do what one rank does with the whole: averages, counts, placing and restarts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldloom.tokenizers.quantizers.codebooks import EmaCodebook, GradientCodebook, Upkeep
from worldloom.tokenizers.quantizers.nearest import nearest_codes
from worldloom.tokenizers.quantizers.ranks import from_first_rank, gather_over_ranks, sum_over_ranks

UPKEEP = Upkeep(place_after=1, restart_every=2, dead_below=0.9, decay=0.7, least_use=0)
BATCH, UPDATES = 10, 9


def trained(rank: int, ranks: int) -> dict[str, Tensor]:
    """The state of both codebooks after some updates on this rank's part of each batch."""
    state = {}
    for name, kind in (("ema", EmaCodebook), ("gradient", GradientCodebook)):
        codebook = kind(6, 3, UPKEEP, torch.Generator().manual_seed(0))
        for update in range(UPDATES):
            batch = torch.randn((BATCH, 3), generator=torch.Generator().manual_seed(update))
            mine = batch.chunk(ranks)[rank]
            codebook.update(mine, nearest_codes(mine, codebook.vectors().detach()))
        state |= {f"{name}.{key}": value for key, value in codebook.state_dict().items()}
    return state


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, __file__, str(tmp_path)], env={**common, "RANK": str(rank)}) for rank in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    alone = trained(0, 1)
    for rank in range(2):
        together = load_file(tmp_path / f"{rank}.safetensors")
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(together[name].double(), value.double(), atol=1e-6, rtol=1e-6), name


def test_alone_the_collectives_give_back_what_they_got() -> None:
    rows = torch.arange(12).view(6, 2)
    assert torch.equal(sum_over_ranks(rows), rows) and torch.equal(from_first_rank(rows), rows)
    assert torch.equal(gather_over_ranks(rows, most=6), rows)


@pytest.mark.parametrize("most, expected", [(5, [0, 2, 4]), (2, [0, 3]), (1, [0])])
def test_a_pool_is_thinned_evenly(most: int, expected: list[int]) -> None:
    assert gather_over_ranks(torch.arange(6)[:, None], most)[:, 0].tolist() == expected


if __name__ == "__main__":
    dist.init_process_group("gloo")
    save_file(trained(dist.get_rank(), 2), Path(sys.argv[1]) / f"{dist.get_rank()}.safetensors")
    dist.destroy_process_group()
