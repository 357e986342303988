"""What a well-behaved client makes of limits: RateLimit fields by a structured-fields library, and `Retry-After`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import http_sf
import httpx

from business import Business


@dataclass
class Standing:
    """A limit, as `RateLimit-Policy` and `RateLimit` tell it (draft-ietf-httpapi-ratelimit-headers-11)."""

    quota: int
    window_s: int
    remaining: int
    effective_s: int


def standings(answer: httpx.Response) -> dict[str, Standing]:
    """Each limit of an answer by its name; both fields must name the same."""
    policies, left = (members(answer, name) for name in ("RateLimit-Policy", "RateLimit"))
    assert list(policies) == list(left), answer.headers
    return {
        name: Standing(policy["q"], policy["w"], left[name]["r"], left[name]["t"]) for name, policy in policies.items()
    }


def members(answer: httpx.Response, field: str) -> dict[str, dict]:
    """A field that is a List of Strings, each with Integers as parameters (RFC 9651)."""
    found = http_sf.parse(answer.headers[field].encode(), tltype="list") if field in answer.headers else []
    for name, parameters in found:
        assert type(name) is str, f"{name!r} is no String"
        assert all(type(value) is int and value >= 0 for value in parameters.values()), parameters
    return dict(found)


def retry_after(answer: httpx.Response) -> int:
    """Seconds (RFC 9110, 10.2.3), at least one."""
    seconds = int(answer.headers["Retry-After"])
    assert seconds >= 1
    return seconds


async def send_obediently(business: Business, to: str, texts: list[str], **fields: str) -> list[httpx.Response]:
    """Sends one after another; where it is told to come back later, it does, and says the same again with the same key.
    Every answer that it got."""
    answers = []
    for text in texts:
        while True:
            answer = await business.post(to, text, key=f"{to} {text}".replace(" ", "-"), **fields)
            answers.append(answer)
            if answer.status_code == 202:
                break
            assert answer.status_code in (429, 503), answer.text
            await asyncio.sleep(retry_after(answer))
    return answers
