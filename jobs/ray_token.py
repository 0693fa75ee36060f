"""The token of a Ray cluster: whether one asks for it, and having Ray send it.

`ray start` asks for a token where it finds one. `ray.init` with an address sends none, unless RAY_AUTH_MODE=token.
"""

import os
from pathlib import Path

from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import Config  # type: ignore[attr-defined]

MODE = "RAY_AUTH_MODE"
FILE = Path("~/.ray/auth_token")
_NAMES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_SECONDS = 5.0


def has_token() -> bool:
    """True if Ray would find a token."""
    return any(name in os.environ for name in _NAMES) or FILE.expanduser().exists()


def send_if_asked(address: str) -> None:
    """Has Ray send our token from now on if a cluster asks for one; what RAY_AUTH_MODE says is left as it is.

    Raises:
        ConnectionError: it asks for one, and there is none.
    """
    if MODE in os.environ or not _is_asked(address):
        return
    if not has_token():
        raise ConnectionError("it asks for a token, and there is none")
    os.environ[MODE] = "token"
    Config.initialize("")  # Ray has read the mode when it was imported


def _is_asked(address: str) -> bool:
    """True if a cluster refuses who sends no token; False if it does not, or gives no such answer."""
    import grpc  # type: ignore[import-untyped]  # a tenth of a second, and not for who has said RAY_AUTH_MODE

    head = address if ":" in address else canonicalize_bootstrap_address(address)
    if head is None or "://" in head:
        return False
    with grpc.insecure_channel(head) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=_SECONDS)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False
