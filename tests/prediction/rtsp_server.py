"""A camera in a thread: RTSP with its packets on the same connection (RFC 2326, section 10.12)."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_DESCRIPTION = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=door\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 33\r\na=control:track1\r\n"
)
"""An MPEG transport stream, payload type 33 of RFC 3551."""

_PAYLOAD = 7 * 188


@contextmanager
def rtsp_camera(transport_stream: bytes) -> Iterator[str]:
    """Send a stream to the first client, then close the connection.

    Yields:
        The address.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        thread = threading.Thread(target=_serve, args=(server, transport_stream), daemon=True)
        thread.start()
        yield f"rtsp://me:secret@127.0.0.1:{server.getsockname()[1]}/door"
        thread.join(10)


def _serve(server: socket.socket, stream: bytes) -> None:
    connection, _ = server.accept()
    with connection, connection.makefile("rb") as requests:
        method = ""
        while method != "PLAY":
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = requests.readline()
                if not line:
                    return
                head += line
            method = head.split(b" ", 1)[0].decode()
            number = re.findall(rb"CSeq: *(\d+)", head)[0].decode()
            connection.sendall(_answer(method, number).encode())
        try:
            for count, start in enumerate(range(0, len(stream), _PAYLOAD)):
                payload = stream[start : start + _PAYLOAD]
                header = struct.pack(">BBHII", 0x80, 33, count & 0xFFFF, count * 3000, 1)
                size = struct.pack(">BBH", 0x24, 0, len(header) + len(payload))
                connection.sendall(size + header + payload)
        except ConnectionError:  # the client has what it wants
            return


def _answer(method: str, number: str) -> str:
    head, body = [f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n"], ""
    if method == "OPTIONS":
        head.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n")
    elif method == "DESCRIBE":
        body = _DESCRIPTION
        head.append(f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n")
    elif method == "SETUP":
        head.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n")
    else:
        head.append("Session: 1\r\n")
    return "".join(head) + "\r\n" + body
