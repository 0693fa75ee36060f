"""A cluster is asked whether it wants a token; Ray sends ours if it does."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from jobs import ray_token


class Head(grpc.GenericRpcHandler):
    """A head node that answers one question, or refuses who sends no token."""

    def __init__(self, asks):
        self.asks, self.asked = asks, []

    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer(call, context))

    def answer(self, call, context):
        self.asked.append(call.method)
        if self.asks:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""


@pytest.fixture
def head(monkeypatch):
    """Starts a head node; gives it and its address. Nobody has said a mode, and Ray is not told of one."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(ray_token, "Config", type("Config", (), {"initialize": staticmethod(lambda text: None)}))
    server = grpc.server(ThreadPoolExecutor(1))

    def start(asks):
        node = Head(asks)
        server.add_generic_rpc_handlers((node,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return node, f"127.0.0.1:{port}"

    yield start
    server.stop(0)


@pytest.mark.parametrize(("asks", "mode"), [(True, "token"), (False, None)])
def test_a_token_is_sent_to_who_asks_for_one(head, monkeypatch, asks, mode):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    _, address = head(asks)
    ray_token.send_if_asked(address)
    assert ray_token.os.environ.get("RAY_AUTH_MODE") == mode
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


def test_who_asks_for_a_token_that_is_not_there_is_named_at_once(head, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setattr(ray_token, "FILE", tmp_path / "auth_token")
    _, address = head(asks=True)
    with pytest.raises(ConnectionError, match="it asks for a token, and there is none"):
        ray_token.send_if_asked(address)
    (tmp_path / "auth_token").write_text("secret")
    assert ray_token.has_token()


def test_a_mode_that_was_said_stays_and_nobody_is_asked(head, monkeypatch):
    node, address = head(asks=True)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray_token.send_if_asked(address)
    assert ray_token.os.environ["RAY_AUTH_MODE"] == "disabled"
    assert not node.asked


def test_who_gives_no_answer_does_not_ask(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    for address in ("127.0.0.1:1", "ray://127.0.0.1:10001"):
        ray_token.send_if_asked(address)
    assert "RAY_AUTH_MODE" not in ray_token.os.environ
