"""Requests made up by schemathesis from the OpenAPI description of the service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from serving.live import Live

pytestmark = pytest.mark.slow

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,negative_data_rejection,"
    "unsupported_method"
)
"""All but the acceptance of valid data: a schema cannot say what the bytes of an image are."""


CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", 504]
"""
"""A deadline that has passed is a 504, and what is made up has deadlines of almost no time."""


def test_the_service_keeps_to_its_description(live: Live, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(tmp_path / "schemathesis.toml")),
            *("run", f"{live.url}/openapi.json"),
            *("--checks", CHECKS, "--max-examples", "100", "--seed", "1"),
            *("--phases", "examples,coverage,fuzzing", "--generation-database", "none"),
        ],
        capture_output=True,
        text=True,
        timeout=1500,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout[-6000:]
    assert live.ask("GET", "/readyz").status == 200
    assert live.service.places.taken == 0
