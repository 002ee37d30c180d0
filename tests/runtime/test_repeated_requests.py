"""Requests that fail are repeated and counted; a server of this test fails them."""

import asyncio
import http.server
import threading
from types import SimpleNamespace

import pytest

from fqs_jax.runtime import repeated_requests

ANSWERS = [0, 503, 200]  # 0: the connection is cut


class _Failing(http.server.BaseHTTPRequestHandler):
    left: list[int]

    def do_GET(self):  # a name that http.server gives
        if code := self.left.pop(0):
            self.send_response(code)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"content")
        else:
            self.close_connection = True

    def log_message(self, *_):
        pass


def test_failed_requests_are_repeated_and_counted():
    gcsfs = pytest.importorskip("gcsfs")
    _Failing.left = list(ANSWERS)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        seen = {"trace_configs": [repeated_requests.trace()]}
        client = gcsfs.core.GCSFileSystem(token="anon", endpoint_url=address, session_kwargs=seen)
        repeated_requests.take()
        assert client.cat_file("bucket/a") == b"content"
        assert repeated_requests.take() == 2 and repeated_requests.take() == 0
        server.shutdown()
    assert not _Failing.left


def test_a_request_that_nobody_waits_for_has_not_failed():
    """gcsfs cancels one when another has answered its question."""
    pytest.importorskip("aiohttp")
    [noted] = repeated_requests.trace().on_request_exception
    repeated_requests.take()
    for error, count in ((asyncio.CancelledError(), 0), (ConnectionResetError(), 1)):
        asyncio.run(noted(None, SimpleNamespace(), SimpleNamespace(exception=error)))
        assert repeated_requests.take() == count
