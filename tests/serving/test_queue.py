"""Load: batches, a full queue, deadlines, clients that go away, and the end of the service."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from segformer import Client, PredictConfig, Predictor, SegFormer
from segformer.serving.models import serve_model
from segformer.serving.options import ServeOptions
from segformer.serving.server import serve
from serving.live import Gate, Live, Reply, encoded, named, photo, running, wait_until

IMAGE = encoded(photo())


@pytest.fixture
def predictor(tiny_model: SegFormer) -> Predictor:
    return Predictor(named(tiny_model), device="cpu")


def start_requests(live: Live, pool: ThreadPoolExecutor, count: int) -> list:
    """Requests that are in the service, waiting for the model."""
    before = live.service.places.taken
    futures = [pool.submit(live.segment, IMAGE) for _ in range(count)]
    wait_until(lambda: live.service.places.taken == before + count)
    return futures


def test_images_of_one_size_are_run_together(tiny_model: SegFormer) -> None:
    predictor = Predictor(named(tiny_model), device="cpu", short_side=32)
    gate = Gate()
    images = [encoded(photo(seed=seed)) for seed in range(6)]
    images += [encoded(photo(64, 64, seed)) for seed in range(3)]
    with running(gate.of(predictor, batch_size=4)) as live, ThreadPoolExecutor(10) as pool:
        (first,) = start_requests(live, pool, 1)
        assert gate.running.wait(30)
        rest = [pool.submit(live.segment, image) for image in images]
        wait_until(lambda: len(live.service.queue._ready) == 9)
        gate.opened.set()
        replies = [future.result() for future in rest]
        assert first.result().status == 200
        text = live.ask("GET", "/metrics").body.decode()
    assert gate.batches[0] == 1
    assert sorted(gate.batches[1:]) == [2, 3, 4]
    for image, reply in zip(images, replies, strict=True):
        assert reply.json["class_fractions"] == predictor(image).class_fractions
    assert 'segformer_batch_size_count{model="tiny"} 4.0' in text
    assert 'segformer_batch_size_sum{model="tiny"} 10.0' in text
    assert 'segformer_images_total{model="tiny"} 10.0' in text


def test_a_full_queue_refuses_at_once(predictor: Predictor) -> None:
    gate = Gate()
    with running(gate.of(predictor), queue_size=3) as live, ThreadPoolExecutor(3) as pool:
        futures = start_requests(live, pool, 3)
        reply = live.segment(IMAGE)
        assert (reply.status, reply.json["code"]) == (429, "queue-full")
        assert int(reply.headers["retry-after"]) >= 1
        assert not gate.opened.is_set()  # the answer did not wait for the model
        gate.opened.set()
        assert [future.result().status for future in futures] == [200] * 3
        assert live.segment(IMAGE).status == 200
        text = live.ask("GET", "/metrics").body.decode()
        assert 'segformer_rejected_total{reason="queue-full"} 1.0' in text
        assert live.service.places.taken == 0


def test_the_client_comes_again(predictor: Predictor) -> None:
    gate = Gate()
    with running(gate.of(predictor), queue_size=1) as live, ThreadPoolExecutor(2) as pool:
        start_requests(live, pool, 1)
        answer = pool.submit(Client(live.url).answer, IMAGE)
        wait_until(lambda: b'{reason="queue-full"}' in live.service.metrics.text())
        gate.opened.set()
        assert answer.result()["model"] == "tiny"


@pytest.mark.parametrize("query", ["", "?timeout=0.2"])
def test_the_deadline(predictor: Predictor, query: str) -> None:
    gate = Gate()
    deadline = 60 if query else 0.2
    with running(gate.of(predictor), deadline=deadline) as live, ThreadPoolExecutor(2) as pool:
        first = pool.submit(live.segment, IMAGE, query)
        assert gate.running.wait(30)
        second = pool.submit(live.segment, IMAGE, query)
        for future in (first, second):
            reply = future.result()
            assert (reply.status, reply.json["code"]) == (504, "deadline-exceeded")
            assert "0.2 s" in reply.json["detail"]
        assert live.service.places.taken == 0
        assert len(live.service.queue._waiting) == len(live.service.queue._ready) == 0
        gate.opened.set()
        wait_until(lambda: gate.batches == [1])  # of the second one nothing was run


def test_a_slow_upload_has_the_deadline_too(predictor: Predictor) -> None:
    with running(serve_model("tiny", predictor), deadline=0.3) as live:
        with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
            connection.sendall(
                b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
                b"Content-Length: 1000\r\n\r\nabc"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 504")
        wait_until(lambda: live.service.places.taken == 0)


def test_work_of_clients_that_went_away_is_dropped(predictor: Predictor) -> None:
    gate = Gate()
    with running(gate.of(predictor)) as live, ThreadPoolExecutor(1) as pool:
        (first,) = start_requests(live, pool, 1)
        assert gate.running.wait(30)
        gone = []
        for _ in range(5):
            connection = socket.create_connection(("127.0.0.1", live.port))
            head = f"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: {len(IMAGE)}\r\n\r\n"
            connection.sendall(head.encode() + IMAGE)
            gone.append(connection)
        wait_until(lambda: live.service.places.taken == 6)
        wait_until(lambda: len(live.service.queue) == 5)  # some of them have been decoded
        for connection in gone:
            connection.close()
        wait_until(lambda: live.service.places.taken == 1)
        wait_until(lambda: len(live.service.queue) == 0)  # one may just be decoded
        gate.opened.set()
        assert first.result().status == 200
        assert live.segment(IMAGE).status == 200
        assert gate.batches == [1, 1]


def test_an_image_in_windows_stops_when_nobody_waits(predictor: Predictor) -> None:
    windowed = serve_model("tiny", Predictor(predictor.model, device="cpu", window=32, stride=16))
    ran: list[int] = []
    opened = threading.Event()
    runtime = windowed.predictor.runtime

    def counted(pixels: object) -> object:
        ran.append(1)
        assert opened.wait(30)
        return runtime(pixels)  # type: ignore[arg-type]

    windowed.predictor.runtime = counted  # type: ignore[assignment]
    with running(windowed, deadline=0.3) as live:
        assert live.segment(encoded(photo(200, 200))).status == 504
        opened.set()
        wait_until(lambda: live.service.queue.works and len(live.service.queue) == 0)
        time.sleep(0.05)
        assert len(ran) == 1


def test_batches_that_do_not_fit_are_run_one_by_one(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    original = Predictor._predict

    def small(self: Predictor, batch: list, *options: object) -> list:
        if len(batch) > 1:
            raise MemoryError
        return original(self, batch, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "_predict", small)
    with running(gate.of(predictor, batch_size=4)) as live, ThreadPoolExecutor(4) as pool:
        start_requests(live, pool, 1)
        assert gate.running.wait(30)
        futures = start_requests(live, pool, 3)
        wait_until(lambda: len(live.service.queue._ready) == 3)
        gate.opened.set()
        assert [future.result().status for future in futures] == [200] * 3
    assert gate.batches == [1, 3, 1, 1, 1]


class Command:
    """`segformer serve` as a process."""

    def __init__(self, model: SegFormer, folder: Path, *words: str, **environment: str):
        model.save_pretrained(folder / "model")
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "segformer", "serve", str(folder / "model")),
                    *("--port", "0", "--device", "cpu", *words),
                ],
                stderr=log,
                env={**os.environ, **environment},
            )
        try:
            wait_until(lambda: "listening on" in self.log.read_text(), 120)
        except AssertionError:
            self.process.kill()
            self.process.wait()
            raise
        self.url = self.log.read_text().partition("listening on ")[2].split()[0]
        self.port = int(self.url.rpartition(":")[2])


def test_sigterm_finishes_what_runs_and_takes_no_more(
    tiny_model: SegFormer, tmp_path: Path
) -> None:
    command = Command(tiny_model, tmp_path, "--window", "32", "--stride", "4")
    live = Live(command.port, None, None)  # type: ignore[arg-type]
    large = encoded(photo(110, 110))  # hundreds of windows
    replies: list[Reply] = []
    try:
        thread = threading.Thread(target=lambda: replies.append(live.segment(large)))
        thread.start()
        wait_until(
            lambda: "segformer_places_taken 1.0" in live.ask("GET", "/metrics").body.decode()
        )
        command.process.send_signal(signal.SIGTERM)

        def is_refused() -> bool:
            try:
                live.ask("GET", "/healthz")
            except OSError:
                return True
            return False

        wait_until(is_refused)
        assert not replies, "the image was done too early to test anything"
        thread.join(60)
        assert replies[0].status == 200
        assert command.process.wait(30) == 0
    finally:
        command.process.kill()
        command.process.wait()
    log = command.log.read_text()
    assert log.rstrip().endswith("stopped")
    assert "Traceback" not in log


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1 port {port}: .*choose another --port"):
            serve((), ServeOptions(port=port), PredictConfig())
