"""The application: routes, limits, access, and a place for a page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from fastapi import Depends, FastAPI
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.middleware.cors import CORSMiddleware

import segformer
from segformer.serving import label_studio, routes
from segformer.serving.access_log import AccessLog
from segformer.serving.api_key import RequireKey, read_keys
from segformer.serving.models import ServedModel
from segformer.serving.options import ServeOptions
from segformer.serving.problems import ProblemDetails, handle_problems
from segformer.serving.service import Service

Mount: TypeAlias = Callable[[FastAPI, Service], None]
"""Adds something to the application, such as a page at /. Access is checked before it is asked."""


def create_app(
    models: Mapping[str, ServedModel], options: ServeOptions, *, mounts: tuple[Mount, ...] = ()
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        models: Name -> model; the first is the default. See `serving.models.load_models`.
        options: Limits and access.
        mounts: Called with the application and the service after all routes are there, so that
            what they mount at / gets the paths that are left.

    Raises:
        ValueError: The file of keys cannot be read.
    """
    service = Service(models, options)
    keys = read_keys(options.api_key_file)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="segformer",
        summary="Semantic segmentation of images",
        version=segformer.__version__,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.service = service
    # These only describe how a key is given; RequireKey checks it
    bearer = HTTPBearer(auto_error=False)
    header = APIKeyHeader(name="X-API-Key", auto_error=False)
    described = [Depends(bearer), Depends(header)] if keys else []
    app.include_router(routes.router, dependencies=described)
    app.include_router(label_studio.router, dependencies=described)
    handle_problems(app)
    _describe_problems(app)
    for mount in mounts:
        mount(app, service)
    # The last one added is asked first
    if keys:
        app.add_middleware(RequireKey, keys=keys)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    app.add_middleware(AccessLog, metrics=service.metrics, log=options.access_log)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Add the schema of error answers to the OpenAPI description."""
    describe = app.openapi

    def with_problems() -> dict[str, Any]:
        schema = describe()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas["ProblemDetails"] = ProblemDetails.model_json_schema()
        return schema

    app.openapi = with_problems  # type: ignore[method-assign]
