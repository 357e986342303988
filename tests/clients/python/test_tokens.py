"""Who may come in: mobile users' tokens, with a shared secret and with a JWKS, and API keys."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from business import Business
from phone import Phone
from server import Server, new_phone

Sign = Callable[..., str]
ALGORITHMS = ["RS256", "ES256", "EdDSA"]


async def stream_status(server: Server, token: str) -> int:
    """How a request with this token is answered."""
    async with Business(server.url, token) as user:
        return (await user.http.get("/v1/stream")).status_code


async def test_the_command_line_makes_tokens_that_work(server: Server):
    number = new_phone()
    token = server.cli("token", "--phone", number).strip().splitlines()[-1]
    assert await stream_status(server, token) == 200
    async with await Phone(server.ws_url, number, token).connect_empty():
        pass


def forged(server: Server, number: str) -> dict[str, str]:
    """Tokens that must not be believed."""
    hour = time.time() + 3600
    good = server.token(number)
    header, payload, signature = good.split(".")
    nothing = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return {
        "expired": server.token(number, ttl_s=-3600),
        "without an end": jwt.encode({"sub": number}, server.jwt_secret, algorithm="HS256"),
        "not yet valid": server.token(number, nbf=hour),
        "of another secret": jwt.encode({"sub": number, "exp": hour}, "x" * 64, algorithm="HS256"),
        "with no algorithm": f"{nothing}.{payload}.",
        "with the signature cut off": f"{header}.{payload}.",
        "with another signature": f"{header}.{payload}.{signature[::-1]}",
        "of no phone": server.token("bank"),
        "of nobody": jwt.encode({"exp": hour}, server.jwt_secret, algorithm="HS256"),
        "a key with a wrong secret": server.demo_key[:-4] + "AAAA",
        "garbage": "e30.e30.e30",
    }


async def test_forged_and_expired_credentials_are_refused(server: Server):
    for name, token in forged(server, new_phone()).items():
        assert await stream_status(server, token) == 401, name


class Issuer:
    """An identity service with a key of each algorithm, and its JWKS."""

    def __init__(self) -> None:
        self.keys = {
            "RS256": rsa.generate_private_key(public_exponent=65_537, key_size=2_048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }

    def jwks(self) -> str:
        def public(algorithm: str) -> dict:
            key = jwt.get_algorithm_by_name(algorithm).to_jwk(self.keys[algorithm].public_key(), as_dict=True)
            return key | {"kid": algorithm.lower(), "alg": algorithm, "use": "sig"}

        return json.dumps({"keys": [public(algorithm) for algorithm in self.keys]})

    def token(self, algorithm: str, number: str, kid: str | None = None) -> str:
        claims = {"sub": number, "exp": time.time() + 600}
        return jwt.encode(claims, self.keys[algorithm], algorithm, headers={"kid": kid or algorithm.lower()})


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def jwks_server(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer):
    """A server that believes an identity service's published keys."""
    directory: Path = tmp_path_factory.mktemp("jwks")
    document = directory / "jwks.json"
    document.write_text(issuer.jwks())
    server = Server(directory / "data", f'auth.jwks="{document}"').start()
    yield server
    server.kill()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_tokens_signed_with_a_published_key_are_believed(jwks_server: Server, issuer: Issuer, algorithm: str):
    number = new_phone()
    async with await Phone(jwks_server.ws_url, number, issuer.token(algorithm, number)).connect_empty():
        pass


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_tokens_of_an_unpublished_key_are_refused(jwks_server: Server, issuer: Issuer, algorithm: str):
    assert await stream_status(jwks_server, Issuer().token(algorithm, new_phone())) == 401
    assert await stream_status(jwks_server, issuer.token(algorithm, new_phone(), kid="unknown")) == 401


async def test_a_public_key_is_not_taken_for_a_shared_secret(jwks_server: Server, issuer: Issuer):
    pem = (
        issuer.keys["RS256"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    claims = {"sub": new_phone(), "exp": time.time() + 600}
    signing = jwt.PyJWS()
    # PyJWT refuses to make such a token; an attacker does not.
    algorithm = jwt.get_algorithm_by_name("HS256")
    algorithm.prepare_key = lambda key: key
    signing.unregister_algorithm("HS256")
    signing.register_algorithm("HS256", algorithm)
    token = signing.encode(json.dumps(claims).encode(), pem, "HS256", headers={"kid": "rs256"})
    assert await stream_status(jwks_server, token) == 401


async def test_a_key_does_what_its_permissions_allow(server: Server):
    phone = Phone.new(server)
    async with Business(server.url, server.new_key("readers", "chat")) as business:
        answer = await business.post(phone.number, "hello")
        assert answer.status_code == 403 and "messages:send" in answer.json()["detail"]


async def test_reading_needs_a_permission_and_keys_made_before_keep_it(server: Server):
    key = server.new_key("uploaders", "media:upload")
    async with Business(server.url, key) as business:
        for path in ("/v1/messages?type=chat", "/v1/webhooks"):
            answer = await business.http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (403, "permission_missing"), path
    early = server.new_key("early", "media:upload")
    with sqlite3.connect(server.data_dir / "store.db", timeout=10) as store:
        # As a server wrote it that did not know these permissions.
        store.execute("UPDATE api_key SET permissions = 'media:upload' WHERE id = ?", (early.split("_")[1],))
    async with Business(server.url, early) as business:
        for path in ("/v1/messages?type=chat", "/v1/webhooks"):
            assert (await business.http.get(path)).status_code == 200, path
    async with Business(server.url, server.demo_key) as business:
        for path in ("/v1/messages", "/v1/webhooks"):
            assert (await business.http.get(path)).status_code == 200, path


async def test_a_revoked_key_is_refused(server: Server):
    key = server.new_key("leaving")
    async with Business(server.url, key) as business:
        assert (await business.http.get("/v1/messages")).status_code == 200
        server.cli("keys revoke", key.split("_")[1])
        async with asyncio.timeout(30):
            while (await business.http.get("/v1/messages")).status_code != 401:
                await asyncio.sleep(0.2)
