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


def certificates(dir: Path) -> tuple[Path, Path]:
    """An authority's certificate, and in one file the key and certificate for 127.0.0.1 that it issued."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority, name = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", "receiver"))

    def issue(to: x509.Name, public_key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> bytes:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            issuer_name=authority,
            subject_name=to,
            public_key=public_key,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(hours=1),
            not_valid_after=now + timedelta(days=1),
        )
        critical = isinstance(extension, x509.BasicConstraints)
        made = builder.add_extension(extension, critical=critical).sign(authority_key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM)

    ca_file, own_file = dir / "authority.pem", dir / "receiver.pem"
    ca_file.write_bytes(issue(authority, authority_key.public_key(), x509.BasicConstraints(ca=True, path_length=0)))
    plain = serialization.NoEncryption()
    key_bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    own_file.write_bytes(key_bytes + issue(name, key.public_key(), address))
    return ca_file, own_file


class Receiver:
    """Answers with `status`, and keeps what a good signature came with."""

    def __init__(self, dir: Path) -> None:
        self.ca_file, own_file = certificates(dir)
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
        context.load_cert_chain(own_file)
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
