"""Figures of the service for Prometheus, in a registry of their own."""

from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from worldloom.pipeline.service.contract import TokenizerInfo
from worldloom.pipeline.service.values import SeveralCodes

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Measures:
    """Labels are names of routes, tokenizers and codes alone: nothing that a request says."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("worldloom_requests", "requests answered", ("route", "tokenizer", "code"), registry=self.registry)
        self.seconds = Histogram("worldloom_request_seconds", "from head to answer", ("route",), buckets=SECONDS, registry=self.registry)
        self.batch_size = Histogram("worldloom_batch_size", "values of a batch", ("tokenizer",), buckets=SIZES, registry=self.registry)
        self.queue_depth = Gauge("worldloom_queue_depth", "values that wait", ("tokenizer",), registry=self.registry)
        self.tokens = Counter("worldloom_tokens", "codes given out", ("tokenizer",), registry=self.registry)
        self.usage = Gauge("worldloom_codebook_usage_ratio", "share of the codes seen so far", ("tokenizer",), registry=self.registry)
        self.in_progress = Gauge("worldloom_requests_in_progress", "requests begun and not answered", registry=self.registry)
        self.rollouts = Gauge("worldloom_rollouts", "open sessions", registry=self.registry)
        self._seen: dict[str, np.ndarray[Any, Any]] = {}

    def count_codes(self, name: str, about: TokenizerInfo, codes: SeveralCodes) -> None:
        """Notes the codes of some values; those of several levels count as one codebook."""
        if name not in self._seen:
            self._seen[name] = np.zeros(about.codebook_size, np.bool_)
        seen = self._seen[name]
        for one in (codes,) if isinstance(codes, np.ndarray) else codes:
            seen[one.reshape(-1)] = True
            self.tokens.labels(tokenizer=name).inc(one.size)

    def text(self) -> bytes:
        """What Prometheus reads."""
        for name, seen in self._seen.items():
            self.usage.labels(tokenizer=name).set(float(seen.mean()))
        return generate_latest(self.registry)
