"""The service on the machines of a Ray cluster: as many copies as the load needs.

serve run segformer.cluster.serving:build model=runs/mine/best max_replicas=8
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import yaml
from fastapi import FastAPI
from ray import serve

from segformer.prediction.config import PredictConfig
from segformer.serving.app import create_app
from segformer.serving.models import load_models
from segformer.serving.options import ServeOptions


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """The application that ``serve run`` and ``serve deploy`` take.

    Args:
        arguments: ``model``, or several divided by commas; ``min_replicas`` (default: 1) and
            ``max_replicas`` (default: 4); ``cpus`` (default: 1) and ``gpus`` (default: 0) of each
            replica; and fields of `ServeOptions` and `PredictConfig`. Ray Serve adds replicas when
            on average more than half of ``queue_size`` requests are in each, and removes them
            when there are fewer.

    Raises:
        ValueError: There is no such option.
    """
    given = {name: _value(value) for name, value in arguments.items()}
    models = [name for name in str(given.pop("model", "")).split(",") if name]
    replicas = (given.pop("min_replicas", 1), given.pop("max_replicas", 4))
    resources = {"num_cpus": given.pop("cpus", 1), "num_gpus": given.pop("gpus", 0)}
    options = ServeOptions(**_take(given, ServeOptions))
    config = PredictConfig(**_take(given, PredictConfig))
    if given:
        raise ValueError(f"no such options: {', '.join(sorted(given))}")

    def application() -> FastAPI:  # built in each replica; Ray accepts nothing but a function
        return create_app(load_models(models, config), options)

    service: Any = serve.ingress(application)()
    deployment = serve.deployment(service).options(
        name="segformer",
        ray_actor_options=resources,
        # More are not sent to a replica, so that its own queue is what refuses
        max_ongoing_requests=2 * options.queue_size,
        autoscaling_config={
            "min_replicas": replicas[0],
            "max_replicas": replicas[1],
            "target_ongoing_requests": max(1, options.queue_size // 2),
        },
    )
    return deployment.bind()


def _take(given: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The arguments that are fields of a dataclass; they are removed."""
    names = {field.name for field in fields(kind)} & given.keys()
    return {name: given.pop(name) for name in names}


def _value(value: Any) -> Any:
    """Words of a command line as YAML reads them: numbers, true and false, lists."""
    return yaml.safe_load(value) if isinstance(value, str) else value
