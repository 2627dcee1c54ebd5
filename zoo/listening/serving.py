"""Where pages for listeners are served: this machine only, unless another address is named."""

from __future__ import annotations

import ipaddress

from zoo.errors import UserError


def is_this_machine(host: str) -> bool:
    """Whether only this machine reaches an address.

    Raises ``UserError`` unless it is an IP address or localhost.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise UserError(
            f"invalid host {host!r}: expected localhost or an address of this machine such as"
            " 127.0.0.1"
        ) from error


def check_port(port: int, lowest: int = 1) -> None:
    """Raises ``UserError`` for a number that is no port."""
    if not lowest <= port <= 65535:
        raise UserError(f"port must be {lowest} to 65535, got {port}")


def address(host: str, port: int) -> str:
    """The address to open in a browser."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def cannot_serve(host: str, port: int, error: OSError) -> OSError:
    """The error to raise where a server cannot start."""
    return OSError(
        f"cannot serve at {host}:{port} ({error}); if the port is in use, choose another --port"
    )
