"""Answers of a web server that offers ranges of its objects, as object stores and content delivery networks do."""

from __future__ import annotations

from aiohttp import web


def answer(request: web.Request, data: bytes, etag: str = '"v1"') -> web.Response:
    """The whole object, the range that is asked for, or 412 if the object is another one than If-Match names."""
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    if request.headers.get("If-Match", etag) != etag:
        return web.Response(status=412)
    wanted = request.http_range
    if wanted.start is None:
        return web.Response(body=data, headers=headers)
    part = data[wanted]
    headers["Content-Range"] = f"bytes {wanted.start}-{wanted.start + len(part) - 1}/{len(data)}"
    return web.Response(status=206, body=part, headers=headers)
