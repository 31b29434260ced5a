"""What the service counts and measures, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one service; they are not shared with others in the process.

    Attributes:
        requests: Answered requests, by path, method and status.
        request_seconds: Time until the answer, by path.
        stage_seconds: Time of an image in each stage: receive (the request), queue, decode (with
            resizing), batch (waiting for others and for the model), run, encode (the answer).
        images: Segmented images, by model.
        batch_size: Images that were run at once, by model.
        rejected: Requests that were refused or given up, by reason.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "segformer_requests",
            "Answered requests.",
            ("path", "method", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "segformer_request_seconds",
            "Time until the answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "segformer_stage_seconds",
            "Time of an image in each stage.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "segformer_images", "Segmented images.", ("model",), registry=self.registry
        )
        self.batch_size = Histogram(
            "segformer_batch_size",
            "Images that were run at once.",
            ("model",),
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.rejected = Counter(
            "segformer_rejected",
            "Requests that were refused or given up.",
            ("reason",),
            registry=self.registry,
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when the metrics are."""
        Gauge(f"segformer_{name}", text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
