"""Requests to a bucket that failed and were made again by this process, counted.

Those of gcsfs, and so of `etils.epath`, are seen on its connections: answered with 408, 429 or 5xx, or not
answered. TensorStore counts its own. What its HTTP library repeats by itself after a cut connection is seen
by nobody.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

_RETRIED = (408, 429)  # and 5xx
_TENSORSTORE = "/tensorstore/kvstore/gcs/retries"
_failed = 0
_taken = 0


def take() -> int:
    """The number of requests that failed since the last call."""
    global _taken
    found = _failed + _of_tensorstore()
    new, _taken = found - _taken, found
    return new


def trace() -> Any:
    """A counter of the requests of an `aiohttp.ClientSession`, for its `trace_configs`."""
    import aiohttp

    config = aiohttp.TraceConfig()
    config.on_request_headers_sent.append(_sent)
    config.on_request_end.append(_ended)
    config.on_request_exception.append(_cut)
    return config


async def _sent(session: Any, context: Any, request: Any) -> None:
    context.sent = getattr(context, "sent", 0) + 1  # aiohttp repeats a GET once by itself


async def _ended(session: Any, context: Any, request: Any) -> None:
    global _failed
    status = request.response.status
    _failed += getattr(context, "sent", 1) - 1 + (status in _RETRIED or status >= 500)


async def _cut(session: Any, context: Any, request: Any) -> None:
    global _failed
    if not isinstance(
        request.exception, asyncio.CancelledError
    ):  # gcsfs asks in two ways, and takes one
        _failed += max(1, getattr(context, "sent", 1))


def _of_tensorstore() -> int:
    tensorstore = sys.modules.get("tensorstore")  # not imported: it has made no requests
    if tensorstore is None:
        return 0
    try:
        found = tensorstore.experimental_collect_matching_metrics(_TENSORSTORE)
        return sum(int(value["value"]) for metric in found for value in metric["values"])
    except (AttributeError, KeyError):  # an experimental function of other versions
        return 0
