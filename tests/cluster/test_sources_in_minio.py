"""Models are read from a real MinIO by the rules of S3: in parts of one object, with the store's own errors, and as Quant's bucket."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from llamesh.kit.source_places import S3Place
from services.download.sources import AddressRules, S3Source, SourceChangedError, SourceError, SourceObject
from tests.cluster.minio_server import minio
from tests.cluster.s3_server import S3Server
from tests.mesh.running import running_mesh, until

__all__ = ["minio"]

DATA = bytes(range(256)) * 40_000
KEY = "sub dir/a+b c%20d=ü.gguf"


@pytest.fixture(scope="module")
def bucket(minio: S3Server) -> str:
    if not minio.client.bucket_exists("llm-models"):
        minio.client.make_bucket("llm-models")
    return "llm-models"


@pytest.fixture
def put(minio: S3Server, bucket: str) -> Any:
    def put(data: bytes, key: str = KEY, **metadata: str) -> None:
        minio.client.put_object(bucket, key, io.BytesIO(data), len(data), metadata=metadata or None)

    return put


def source(minio: S3Server, **changes: str) -> S3Source:
    values = {"endpoint": minio.endpoint, "access_key": minio.access_key, "secret_key": minio.secret_key}
    place = S3Place.model_validate({"bucket": "llm-models", "secure": False} | values | changes)
    return S3Source(AddressRules(), {"quant": place})


async def part(found: SourceObject, offset: int, length: int) -> bytes:
    assert found.read is not None
    return b"".join([chunk async for chunk in found.read(offset, length)])


async def test_an_object_is_read_whole_and_in_parts(minio: S3Server, put: Any) -> None:
    put(DATA, sha256=hashlib.sha256(DATA).hexdigest())
    async with source(minio).open(f"s3://quant/{KEY}") as found:
        assert (found.size, found.name, found.sha256) == (
            len(DATA),
            "a+b c%20d=ü.gguf",
            hashlib.sha256(DATA).hexdigest(),
        )
        assert await part(found, 1_000_000, 2_000_001) == DATA[1_000_000:3_000_001]
        assert await part(found, len(DATA) - 1, 1) == DATA[-1:]
        assert b"".join([chunk async for chunk in found.chunks]) == DATA


async def test_a_part_of_an_object_that_was_replaced_is_refused(minio: S3Server, put: Any) -> None:
    put(DATA)
    async with source(minio).open(f"s3://quant/{KEY}") as found:
        put(DATA[::-1])
        with pytest.raises(SourceChangedError):
            await part(found, 10, 10)


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({}, "none.gguf", "llm-models has no object none.gguf"),
        ({"bucket": "no-such-bucket"}, "a.gguf", "has no bucket no-such-bucket"),
        ({"secret_key": "wrong"}, "a.gguf", r"refuses the credentials .*place quant \(SignatureDoesNotMatch\)"),
        ({"access_key": "nobody"}, "a.gguf", r"refuses the credentials .*\((InvalidAccessKeyId|XAdminUserNotFound)\)"),
        ({"access_key": "", "secret_key": ""}, "a.gguf", r"refuses the credentials .*\(AccessDenied\)"),
    ],
)
async def test_a_refusal_of_the_store_names_the_reason(
    minio: S3Server, bucket: str, changes: dict[str, str], key: str, words: str
) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        async with source(minio, **changes).open(f"s3://quant/{key}"):
            pass
    assert minio.secret_key not in str(caught.value)
    assert not caught.value.transient


@pytest.fixture
def quant_service(minio: S3Server, put: Any, tmp_path: Path) -> Iterator[str]:
    """A FAKE Quant API that knows one model in the real store."""
    path = tmp_path / "words.gguf"
    sentence.write(path)
    data = path.read_bytes()
    put(data, "words/Q8_0.gguf")
    about = {"model_uuid": "words", "name": "Words.gguf", "object_key": "words/Q8_0.gguf", "bucket": "llm-models"}
    about |= {"size_bytes": str(len(data)), "sha256": hashlib.sha256(data).hexdigest()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/models/words" and self.headers.get("Authorization") == "Bearer theirs"
            body = json.dumps(about).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_flow_of_the_reference_deployment(minio: S3Server, quant_service: str) -> None:
    """POST /download/{model_uuid}, /status, /models, /serve, chat: from Quant's bucket to a token."""
    quant = {"QUANT_SERVICE_URL": quant_service, "QUANT_SERVICE_TOKEN": "theirs"}
    with running_mesh(**minio.settings, **quant) as mesh:
        assert mesh.call("POST", "/download/words", "download").status_code == 200

        def status() -> dict[str, Any]:
            found: dict[str, Any] = mesh.call("GET", "/status/words", "download").json()
            assert found["state"] != "DOWNLOAD_STATE_FAILED", found
            return found

        until(lambda: status()["state"] == "DOWNLOAD_STATE_SUCCEEDED", 60, "the model")
        [model] = mesh.call("GET", "/models").json()["models"]
        assert (model["model_uuid"], model["name"], model["source"]) == ("words", "Words.gguf", "quant:words")
        mesh.serve("words", model_name="Words.gguf")
        body = {"model": "Words.gguf", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
        answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body)
        assert answer.json()["choices"][0]["message"]["content"].strip() == SENTENCE
