"""The rate that MFU is measured against: a plausible number, measured once."""

import json

import torch

from worldloom.stages import device_rate
from worldloom.stages.device_rate import product_rate


def test_it_is_measured_once_for_each_format_and_draws_no_random_number(tmp_path, monkeypatch):
    monkeypatch.setattr(device_rate, "SECONDS", 0.01)
    monkeypatch.setitem(device_rate.SIDES, "cpu", 64)
    before = torch.get_rng_state()
    rate = product_rate(tmp_path, "fp32")
    assert torch.equal(torch.get_rng_state(), before)
    assert 1e6 < rate < 1e14
    assert product_rate(tmp_path, "fp32") == rate
    product_rate(tmp_path, "bf16")
    assert len(json.loads((tmp_path / "product-rate.json").read_bytes())) == 2
