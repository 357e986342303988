"""A business's endpoint for webhooks, over https, which checks signatures with the library of Standard Webhooks."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from standardwebhooks import Webhook

# What this receiver shows of a message only ever moves up.
RANK = {"sent": 0, "failed": 1, "expired": 1, "cancelled": 1, "delivered": 2, "read": 3}


def certificate(dir: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = dir / "receiver.pem", dir / "receiver.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return paths


class Receiver:
    """Answers with `status`, and keeps what a good signature came with."""

    def __init__(self, dir: Path) -> None:
        self.ca_file, key = certificate(dir)
        self.secrets: list[str] = []
        self.status = 204
        # In the order of arrival: headers, and the body as it was.
        self.requests: list[tuple[dict[str, str], bytes]] = []
        # What the business shows of each message, and every status that it ever showed.
        self.shown: dict[str, str] = {}
        self.history: dict[str, list[str]] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.take({name.lower(): value for name, value in self.headers.items()}, body)
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing: the tests look at what was taken."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca_file, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.server_port}/hook"

    def take(self, headers: dict[str, str], body: bytes) -> None:
        self.requests.append((headers, body))
        if not 200 <= self.status < 300:
            return
        data: dict[str, Any] = self.verified(self.secrets[-1], headers, body)["data"]
        id, status = data["id"], data["status"]
        assert headers["webhook-id"] == f"{id}.{status}"
        if RANK[status] > RANK[self.shown.get(id, "sent")]:
            self.shown[id] = status
            self.history.setdefault(id, []).append(status)

    @staticmethod
    def verified(secret: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        return Webhook(secret).verify(body, headers)

    async def until(self, is_so: Callable[[], bool], limit_s: float = 30.0) -> None:
        """Waits until it is so."""
        async with asyncio.timeout(limit_s):
            while not is_so():
                await asyncio.sleep(0.02)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
