"""Where a batch's service is, and what it takes to get there: address, proxy, API key."""

from __future__ import annotations

import ipaddress
import os
import urllib.request

import httpx

from orchestrator.errors import ConfigError

KEY = "OPENAI_API_KEY"


def key_of_environment() -> str:
    """The key for a service elsewhere.

    Raises:
        ConfigError: no header can carry it.
    """
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{KEY} has characters that no header can carry.", where=KEY)
    return key


def address(url: str) -> httpx.URL:
    """`batch.url`, without the `/v1` that every request's own url has.

    Raises:
        ConfigError: it is no address.
    """
    try:
        found = httpx.URL(url.strip().rstrip("/").removesuffix("/v1").rstrip("/"))
    except httpx.InvalidURL as error:
        raise ConfigError(f"batch.url={url}: {error}.", where="batch.url") from error
    if found.scheme not in ("http", "https") or not found.host or found.query or found.fragment:
        raise ConfigError(f"batch.url={url} is no address.", where="batch.url", hint="For example http://HOST:8000/v1.")
    return found


def proxy(to: httpx.URL) -> httpx.URL | None:
    """The proxy that the usual variables name for an address; None for one on this machine."""
    if _is_local(to.host):
        return None
    known = urllib.request.getproxies()
    found = known.get(to.scheme) or known.get("all")
    where = f"{to.host}:{to.port}" if to.port else to.host
    if not found or urllib.request.proxy_bypass(where):
        return None
    return httpx.URL(found if "://" in found else f"http://{found}")


def _is_local(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or ip.is_unspecified
