"""The images of Label Studio's tasks: uploads, local files, and images inside the task.

Only Label Studio itself and one folder are read, whatever a task says: others who reach the service
could otherwise use it to read what only this machine can.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage, InvalidURL
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from segformer.serving.options import ServeOptions
from segformer.serving.problems import Problem

URL_VARIABLE, TOKEN_VARIABLE = "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"

_SECONDS = 10.0
"""Time that Label Studio has for each step of its answer."""

_LOCAL_FILES = "/data/local-files/"


class TaskImages:
    """Loads the images of tasks.

    Args:
        options: Where images may be loaded from, and how large they may be.
        environment: Where URL and token of Label Studio are, as in the environment of a process.
    """

    def __init__(self, options: ServeOptions, environment: Mapping[str, str] = os.environ):
        self.options = options
        self.url = (options.label_studio_url or environment.get(URL_VARIABLE, "")).rstrip("/")
        self.token = environment.get(TOKEN_VARIABLE, "")

    def load(self, value: str) -> bytes:
        """The encoded image that a task names.

        Raises:
            Problem: It may not or cannot be loaded.
        """
        if value.startswith("data:"):
            return _from_data_url(value)
        try:
            url = urljoin(f"{self.url}/", value) if self.url else value
            parts, origin = urlsplit(url), _origin(url)
        except ValueError:
            raise _invalid_url() from None
        if parts.path == _LOCAL_FILES and self.options.label_studio_files is not None:
            return self._read(parse_qs(parts.query).get("d", [""])[0])
        if self.url and origin == _origin(self.url):
            return self._download(url)
        where = f"on {parts.hostname}" if parts.hostname else "in Label Studio"
        raise Problem(
            422,
            "image-not-reachable",
            f"the image of the task is {where}, from where nothing is loaded; start the service "
            f"with --label-studio-url and the variable {TOKEN_VARIABLE}, or with "
            "--label-studio-files for its local files",
        )

    def _read(self, name: str) -> bytes:
        """A file of the folder of local files."""
        assert self.options.label_studio_files is not None
        root = self.options.label_studio_files.resolve()
        try:
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise ValueError
            with path.open("rb") as file:
                return self._limited(file)
        except (OSError, ValueError):
            raise Problem(
                422, "image-not-reachable", f"there is no local file {name!r} of Label Studio"
            ) from None

    def _download(self, url: str) -> bytes:
        try:
            request = Request(url, headers=self._authorization())
            with _OPENER.open(request, timeout=_SECONDS) as response:
                return self._limited(response)
        except HTTPError as error:
            advice = (
                f"; is the variable {TOKEN_VARIABLE} right?" if error.code in (401, 403) else ""
            )
            raise Problem(
                422,
                "image-not-reachable",
                f"Label Studio answers with {error.code} for the image of the task{advice}",
            ) from None
        except InvalidURL:
            raise _invalid_url() from None
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            raise Problem(
                504, "label-studio-not-reachable", "Label Studio does not answer for an image"
            ) from None

    def _authorization(self) -> dict[str, str]:
        """The header for Label Studio: personal tokens are exchanged for a short-lived one."""
        if not self.token:
            return {}
        if self.token.count(".") != 2:
            return {"Authorization": f"Token {self.token}"}
        body = json.dumps({"refresh": self.token}).encode()
        headers = {"Content-Type": "application/json"}
        request = Request(f"{self.url}/api/token/refresh", body, headers)
        with _OPENER.open(request, timeout=_SECONDS) as response:
            return {"Authorization": f"Bearer {json.load(response)['access']}"}

    def _limited(self, file: IO[bytes]) -> bytes:
        data = file.read(self.options.max_bytes + 1)
        if len(data) > self.options.max_bytes:
            raise Problem(
                413,
                "too-many-bytes",
                f"the image of the task is above the limit of {self.options.max_megabytes:g} MB",
            )
        return data


class _Redirects(HTTPRedirectHandler):
    """Follows to storage elsewhere, without the token."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """The request for the new address."""
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _origin(newurl) != _origin(req.full_url):
            request.remove_header("Authorization")
        return request


_OPENER = build_opener(_Redirects)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, parts.port or default


def _invalid_url() -> Problem:
    return Problem(422, "image-not-reachable", "the image of the task is not a valid URL")


def _from_data_url(value: str) -> bytes:
    head, _, data = value.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error):
        raise Problem(422, "broken-base64", "the task's image is not a base64 data URL") from None


def image_of(task: Any, key: str) -> str:
    """What a task names as its image.

    Raises:
        Problem: It names none.
    """
    data = task.get("data") if isinstance(task, dict) else None
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, str) or not value:
        raise Problem(422, "no-image", f"the task has no text under data.{key}, its image")
    return value
