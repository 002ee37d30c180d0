"""A proxy before the emulator of a bucket that fails at random, as networks and services do."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import threading
from collections.abc import Iterator

import aiohttp
import yarl
from aiohttp import web

HOP = (
    "connection",
    "transfer-encoding",
    "keep-alive",
    "content-length",
    "content-encoding",
    "host",
)


class FailingProxy:
    """Forwards requests to `target`; some are answered with an error, cut off, or kept waiting.

    Attributes:
      address: where it listens.
      happened: how often each thing has happened, by name.
    """

    def __init__(self, address: str, target: str, shares: dict[str, float], seed: int) -> None:
        """A proxy that is not started.

        Args:
          address: http://HOST:PORT.
          shares: of requests, by name: a status such as "503"; "lost" = cut off before it is forwarded,
            "cut" = cut off after it was carried out; "slow" = kept waiting for two seconds.
        """
        self.address, self._target, self._shares = address, target, shares
        self._random = random.Random(seed)
        self.happened: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def running(self) -> Iterator[FailingProxy]:
        """The proxy, on a thread of its own, until the block ends."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            runner = asyncio.run_coroutine_threadsafe(self._start(), loop).result()
            yield self
            asyncio.run_coroutine_threadsafe(self._stop(runner), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _start(self) -> web.AppRunner:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{anything:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        url = yarl.URL(self.address)
        assert url.host is not None
        await web.TCPSite(runner, url.host, url.port).start()
        return runner

    async def _stop(self, runner: web.AppRunner) -> None:
        await runner.cleanup()
        await self._session.close()

    def _choose(self) -> str:
        at = self._random.random()
        for name, share in self._shares.items():
            if at < share:
                return name
            at -= share
        return "answered"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        what = self._choose()
        self.happened[what] += 1
        if what.isdigit():
            return web.Response(status=int(what), text="try again later")
        if what == "lost":
            return _cut(request)
        if what == "slow":
            await asyncio.sleep(2)
        body = await request.read()
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in HOP
        }
        url = yarl.URL(self._target + request.raw_path, encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as found:
            content = await found.read()
            kept = {name: value for name, value in found.headers.items() if name.lower() not in HOP}
        if what == "cut":
            return _cut(request)
        return web.Response(status=found.status, headers=kept, body=content)


def _cut(request: web.Request) -> web.Response:
    """Close the connection of a request, which then gets no answer."""
    if request.transport is not None:  # which it is once the client has given up
        request.transport.abort()
    return web.Response()
