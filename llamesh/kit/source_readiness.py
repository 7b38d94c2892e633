"""Probes the servers that the settings name as sources of models: the S3 places, the registries, and the Quant service with its store.

Invariant: a probe changes nothing and shows no secret. All run concurrently, each for at most twice SECONDS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import certifi
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, S3Error, ServerError

from llamesh.kit.config import Settings
from llamesh.kit.own_places import quant_place
from llamesh.kit.source_places import REGISTRY_OF, RegistryPlace, S3Place
from llamesh.kit.store_report import SECONDS, StoreReport

_PROBE = "llamesh-doctor"
"""Key of an object that need not exist. A request for it distinguishes wrong credentials from credentials without the right to list."""


def sources(settings: Settings) -> list[StoreReport]:
    """Return the report of each server. Hugging Face is left out, because a mesh without internet access works without it."""
    with ThreadPoolExecutor(8) as threads:
        return [answer.result() for answer in [threads.submit(ask) for ask in _questions(settings)]]


def _questions(settings: Settings) -> Iterator[Callable[[], StoreReport]]:
    for name, place in settings.s3_sources.items():
        yield partial(_bucket, f"s3://{name}", place, "LLAMESH_S3_SOURCES")
    for host, registry in settings.oci_registries.items():
        yield partial(_registry, host, registry)
    if settings.quant_service_url:
        yield partial(_quant, settings)
        if store := quant_place(settings):
            yield partial(_bucket, "quant store", store, f"{store.settings} and {store.bucket_setting}")


def _pool() -> urllib3.PoolManager:
    return urllib3.PoolManager(timeout=SECONDS, retries=False, cert_reqs="CERT_REQUIRED", ca_certs=certifi.where())


def _bucket(check: str, place: S3Place, setting: str) -> StoreReport:
    where = f"S3 at {place.endpoint}"
    access_key, secret_key = place.access_key.get_secret_value(), place.secret_key.get_secret_value()
    try:
        client = Minio(
            place.endpoint,
            access_key=access_key or None,
            secret_key=secret_key or None,
            secure=place.secure,
            region=place.region,
            http_client=_pool(),
        )
        client.get_object(place.bucket, _PROBE).close()
    except S3Error as error:
        if error.code not in {"NoSuchKey", "AccessDenied"} or (error.code == "AccessDenied" and not access_key):
            return StoreReport(check, f"{where} refuses bucket {place.bucket}: {error.code}", "", f"correct {setting}")
    except (InvalidResponseError, ServerError, ValueError) as error:
        return StoreReport(check, f"{where} does not answer as S3: {type(error).__name__}", "", f"correct {setting}")
    except urllib3.exceptions.HTTPError as error:
        words = f"{where} does not answer: {str(error).rpartition(': ')[2]}"
        return StoreReport(check, words, "", f"start it, or correct {setting}")
    return StoreReport(check, "", f"{where}, bucket {place.bucket}")


def _registry(host: str, registry: RegistryPlace) -> StoreReport:
    """Ask a registry for its version. Credentials are not tried: each is good for repositories that only a caller names."""
    check, url = f"oci://{host}", f"{'https' if registry.secure else 'http'}://{REGISTRY_OF.get(host, host)}/v2/"
    try:
        answer = _pool().request("GET", url, redirect=False, preload_content=False)
        answer.close()
    except urllib3.exceptions.HTTPError as error:
        words = f"{url} does not answer: {str(error).rpartition(': ')[2]}"
        return StoreReport(check, words, "", "start it, or correct LLAMESH_OCI_REGISTRIES")
    if answer.status not in {200, 401}:
        words = f"{url} does not answer as a registry: {answer.status}"
        return StoreReport(check, words, "", "correct LLAMESH_OCI_REGISTRIES")
    return StoreReport(check, "", url)


def _quant(settings: Settings) -> StoreReport:
    check, url, token = "quant service", settings.quant_service_url, settings.quant_service_token.get_secret_value()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = _pool().request("GET", f"{url}/models", headers=headers, redirect=False, preload_content=False)
        answer.close()
    except urllib3.exceptions.HTTPError as error:
        words = f"{url} does not answer: {str(error).rpartition(': ')[2]}"
        return StoreReport(check, words, "", "start it, or correct QUANT_SERVICE_URL")
    if answer.status in {401, 403}:
        words = "refuses the token" if token else "asks for a token"
        return StoreReport(check, f"{url} {words}", "", "set QUANT_SERVICE_TOKEN")
    if answer.status != 200:
        return StoreReport(check, f"{url}/models answers {answer.status}", "", "correct QUANT_SERVICE_URL")
    return StoreReport(check, "", url)
