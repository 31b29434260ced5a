"""Measure the service under load: throughput, latency, refusals, memory.

    python benchmarks/serving.py                # 16 and 64 clients, then ten times the capacity
    python benchmarks/serving.py --seconds 10

The service is `segformer serve` in a process of its own, the clients are threads in another one.
Each client sends its next image when it has the answer, and after a refusal (429) when the answer
says. The plain loop, ``for image in images: predictor(image)``, runs in a process of its own too,
alternately with the service, so that other load on the machine affects both. For ten times the
capacity, requests are sent at a fixed rate, whatever the answers are.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness

LOOP = """
import sys, time
from pathlib import Path
from segformer import Predictor
seconds, model, *files = sys.argv[1:]
predictor, images, done = Predictor(model), [Path(file).read_bytes() for file in files], 0
predictor(images[0])
began, cpu = time.perf_counter(), time.process_time()
while time.perf_counter() - began < float(seconds):
    predictor(images[done % len(images)]).label_map
    done += 1
print(done / (time.perf_counter() - began), (time.process_time() - cpu) / done)
"""
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput and latency of the service")
    parser.add_argument("--model", default="human-parsing-b0")
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--overload", type=float, default=10, help="times the capacity")
    parser.add_argument("--queue-size", type=int, default=64)
    parser.add_argument("--images", type=Path, help="folder of JPEG files; default: a photograph")
    parser.add_argument("--format", default="label_map")
    parser.add_argument("--generate", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        print(json.dumps(generate(**json.loads(options.generate))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        files = _images(options.images, Path(temporary))
        rows = []
        for row in measure(options, files):
            print(json.dumps(row), flush=True)
            rows.append(row)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    record = {"machine": harness.machine(), "rows": rows}
    (folder / "serving.json").write_text(json.dumps(record, indent=1) + "\n")


def _images(folder: Path | None, temporary: Path) -> list[str]:
    if folder is None:
        from photograph import write_images

        return [str(path) for path in write_images(temporary, 4)]
    return sorted(str(path) for path in folder.glob("*.jpg"))[:32]


def measure(options: argparse.Namespace, files: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each load, between two measurements of the plain loop."""
    service = Service(options.model, options.queue_size)

    def loop() -> tuple[float, float]:
        with service.paused():
            return plain_loop(options.model, options.seconds, files)

    try:
        base = {"port": service.port, "files": files, "format": options.format}
        loads: list[dict[str, Any]] = [{"clients": count} for count in options.clients]
        capacity = 0.0
        before = loop()
        for load in [*loads, {"rate": 0.0}]:
            if "rate" in load:
                load["rate"] = options.overload * capacity
            memory, cpu = service.memory(), service.cpu_seconds()
            found = run_generator({**base, **load, "seconds": options.seconds})
            answered = max(1, found["answers"].get("200", 0))
            found["cpu_seconds_per_image"] = (service.cpu_seconds() - cpu) / answered
            found["memory_mib_before_and_after"] = [memory, service.memory()]
            found["answers_afterwards"] = service.answers(files[0])
            after = loop()
            rate, loop_cpu = ((one + other) / 2 for one, other in zip(before, after, strict=True))
            before = after
            capacity = max(capacity, found["images_per_second"])
            found["plain_loop_images_per_second"] = rate
            found["plain_loop_cpu_seconds_per_image"] = loop_cpu
            found["ratio_to_plain_loop"] = found["images_per_second"] / rate
            yield {**load, **found}
    finally:
        service.stop()


def plain_loop(model: str, seconds: float, files: list[str]) -> tuple[float, float]:
    """Images per second of a loop over a predictor, and CPU seconds per image."""
    words = [sys.executable, "-c", LOOP, str(seconds), model, *files]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    rate, cpu = map(float, done.stdout.split())
    return rate, cpu


class Service:
    """`segformer serve` as a process."""

    def __init__(self, model: str, queue_size: int):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        words = ["serve", model, "--port", str(self.port), "--queue-size", str(queue_size)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "segformer", "--quiet", *words, "--no-access-log"]
        )
        until = time.monotonic() + 120
        while True:
            try:
                ask(self.port, "GET", "/readyz", None)
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def memory(self) -> float:
        """Resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0]) / MIB

    def cpu_seconds(self) -> float:
        """CPU time of all threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def answers(self, file: str) -> bool:
        """Whether an image is segmented."""
        return ask(self.port, "POST", "/v1/segment", Path(file).read_bytes())[0] == 200

    def paused(self) -> Paused:
        """Stop the process meanwhile, so that it takes no time at all."""
        return Paused(self.process)

    def stop(self) -> None:
        """End the service."""
        self.process.terminate()
        self.process.wait(60)


class Paused:
    """A stopped process."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self.process = process

    def __enter__(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGCONT)


def run_generator(load: dict[str, Any]) -> dict[str, Any]:
    """What a load generator in a process of its own has measured."""
    words = [sys.executable, sys.argv[0], "--generate", json.dumps(load)]
    result: dict[str, Any] = json.loads(
        subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    )
    return result


def ask(
    port: int, method: str, path: str, body: bytes | None, timeout: float = 60
) -> tuple[int, str]:
    """Status of an answer, and when to try again."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, {"Content-Type": "image/jpeg"} if body else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("Retry-After", "")
    finally:
        connection.close()


def generate(
    port: int,
    files: list[str],
    format: str,
    seconds: float,
    clients: int = 0,
    rate: float = 0.0,
) -> dict[str, Any]:
    """Send images for a time, by clients that wait for answers or at a rate."""
    images = [Path(file).read_bytes() for file in files]
    path = f"/v1/segment?format={format}"
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    in_time = 0
    lock = threading.Lock()
    began = time.perf_counter()

    def one(number: int) -> str:
        nonlocal in_time
        sent = time.perf_counter()
        try:
            status, retry = ask(port, "POST", path, images[number % len(images)])
        except OSError as error:
            status, retry = 0, type(error).__name__
        with lock:
            statuses[str(status or retry)] += 1
            if status == 200:
                latencies.append(time.perf_counter() - sent)
                in_time += time.perf_counter() - began <= seconds
        return retry

    def client(number: int) -> None:
        while time.perf_counter() - began < seconds:
            retry = one(number)
            if retry.isdigit():
                time.sleep(min(float(retry), max(0, began + seconds - time.perf_counter())))

    if clients:
        threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        with ThreadPoolExecutor(256) as pool:
            for number in range(int(rate * seconds)):
                time.sleep(max(0.0, began + number / rate - time.perf_counter()))
                pool.submit(one, number)
    elapsed = time.perf_counter() - began
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [0.0] * 99
    return {
        "seconds_until_the_last_answer": elapsed,
        "answers": dict(statuses),
        "images_per_second": in_time / seconds,
        "p50_seconds": cuts[49],
        "p99_seconds": cuts[98],
    }


if __name__ == "__main__":
    main()
