"""What the page is made of, and what happens when images arrive.

Gradio calls the functions here in the event loop of the service.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import gradio as gr

from segformer.serving.access_log import Record
from segformer.serving.models import ServedModel
from segformer.serving.options import ImageFormat
from segformer.serving.page import results
from segformer.serving.page.video import can_segment_videos, segment_video
from segformer.serving.problems import Problem
from segformer.serving.service import Service

logger = logging.getLogger(__name__)

Result: TypeAlias = dict[str, Any]
"""See viewer.js."""

_EXAMPLE = Path(str(files("segformer"))) / "assets/astronaut.jpg"

_SUFFIXES: dict[ImageFormat, tuple[str, ...]] = {
    "jpeg": (".jpg", ".jpeg"),
    "tiff": (".tif", ".tiff"),
}
"""Suffixes of the formats whose suffix is not their name."""


def build_blocks(service: Service, folder: Path) -> gr.Blocks:
    """The page of a service.

    Args:
        service: What segments.
        folder: Folder for results.
    """
    names = list(service.models)
    with gr.Blocks(title="Image segmentation", analytics_enabled=False) as blocks:
        gr.HTML(_asset("header.html"))
        shown = gr.State([], time_to_live=3600)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=280):
                with gr.Tab("Images"):
                    chosen = gr.File(
                        label="Images",
                        file_count="multiple",
                        file_types=["image", *_suffixes(service.options.formats)],
                        height=150,
                    )
                with gr.Tab("Camera"):
                    photo = gr.Image(
                        label="Camera",
                        sources=["webcam"],
                        type="filepath",
                        image_mode=None,
                        height=240,
                        buttons=[],
                    )
                with gr.Tab("Video", visible=can_segment_videos()):
                    clip = gr.File(label="Video", file_types=["video"], height=150)
                model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
                with gr.Row():
                    example = gr.Button("Example", size="md", min_width=120)
                    clear = gr.Button("Remove all", size="md", min_width=120, visible=False)
            with gr.Column(scale=4, min_width=320):
                viewer = gr.HTML(
                    [],
                    html_template=_asset("viewer.html"),
                    css_template=_asset("viewer.css"),
                    js_on_load=_asset("viewer.js"),
                    apply_default_css=False,
                )
                video = gr.Video(label="Segmented video", visible=False, autoplay=True)
        outputs = [viewer, shown, chosen, photo, clear]

        async def segment_files(
            paths: list[str] | None, name: str, before: list[Result]
        ) -> AsyncIterator[list[Any]]:
            run = _segment(service, folder, [Path(path) for path in paths or []], name)
            async for found in run:
                now = [*before, *found]
                yield [now, now, None, None, gr.Button(visible=True)]

        async def segment_photo(
            path: str | None, name: str, before: list[Result]
        ) -> AsyncIterator[list[Any]]:
            async for values in segment_files([path] if path else [], name, before):
                yield values

        async def segment_example(name: str, before: list[Result]) -> AsyncIterator[list[Any]]:
            async for values in segment_files([str(_EXAMPLE)], name, before):
                yield values

        async def segment_clip(path: str, name: str) -> AsyncIterator[Any]:
            yield gr.Video(None, visible=True)
            out = folder / secrets.token_urlsafe(16) / f"{Path(path).stem}_overlay.mp4"
            out.parent.mkdir()
            try:
                await segment_video(service, Path(path), service.model(name), out)
            except Problem as problem:
                raise gr.Error(_sentence(problem), print_exception=False) from None
            yield gr.Video(str(out), visible=True)

        def remove_all() -> list[Any]:
            return [[], [], None, None, gr.Button(visible=False), gr.Video(None, visible=False)]

        # The service limits how much is done at once, not Gradio
        listen = {
            "outputs": outputs,
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        chosen.upload(segment_files, [chosen, model, shown], **listen)
        photo.input(segment_photo, [photo, model, shown], **listen)
        example.click(segment_example, [model, shown], **listen)
        clear.click(remove_all, None, **{**listen, "outputs": [*outputs, video]})
        clip.upload(
            segment_clip, [clip, model], video, api_visibility="private", concurrency_limit=1
        )
    return blocks


async def _segment(
    service: Service, folder: Path, paths: Sequence[Path], model: str
) -> AsyncIterator[list[Result]]:
    """Segment files; yields the results of all of them after every change."""
    found = [results.waiting(path.name) for path in paths]
    yield found
    served = service.model(model)
    at_once = served.staged.batch_size
    for start in range(0, len(paths), at_once):
        group = paths[start : start + at_once]
        found[start : start + at_once] = await asyncio.gather(
            *(_segment_file(service, folder, path, served) for path in group)
        )
        yield list(found)


async def _segment_file(service: Service, folder: Path, path: Path, model: ServedModel) -> Result:
    """Segment a file as a request would be; an error becomes the result."""
    try:
        async with service.admit():
            data = await service.in_thread(path.read_bytes)
            (prediction,) = await service.segment([data], model, Record(uuid4().hex))
            place = folder / secrets.token_urlsafe(16)
            return await service.in_thread(
                partial(results.done, path.name, prediction, model.name, place), "encode"
            )
    except Problem as problem:
        return results.failed(path.name, _sentence(problem))
    except Exception:
        logger.exception("the page cannot show an image")
        return results.failed(path.name, "the service has met an error of its own")


def _sentence(problem: Problem) -> str:
    if problem.code == "queue-full":
        seconds = (problem.headers or {}).get("Retry-After", "some")
        return f"the service is busy; try again in {seconds} s"
    return problem.detail


def _suffixes(formats: Sequence[ImageFormat]) -> list[str]:
    return [suffix for name in formats for suffix in _SUFFIXES.get(name, (f".{name}",))]


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
