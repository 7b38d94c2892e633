"""Anyone may read the public keys, and a token can be verified with them and nothing else; a shared secret is never among them."""

from __future__ import annotations

import jwt
import pytest
from google.protobuf import json_format

from llamesh.v1 import gateway_pb2


@pytest.mark.parametrize("algorithm", ["EdDSA", "RS256"])
async def test_a_token_is_verified_with_the_published_keys(algorithm, one_settings, start_mesh) -> None:
    mesh = await start_mesh(one_settings.model_copy(update={"jwt_algorithm": algorithm}))
    request = gateway_pb2.CreateTokenRequest(username="admin", password="admin")
    token = (await mesh.gateway.CreateToken(request)).access_token
    published = await mesh.gateway.GetPublicKeys(gateway_pb2.GetPublicKeysRequest())
    keys = jwt.PyJWKSet.from_dict(json_format.MessageToDict(published, preserving_proto_field_name=True))
    key = keys[jwt.get_unverified_header(token)["kid"]]
    assert jwt.decode(token, key, [algorithm], audience="llamesh")["sub"] == "admin"


async def test_a_shared_secret_is_not_published(mesh) -> None:
    published = await mesh.gateway.GetPublicKeys(gateway_pb2.GetPublicKeysRequest())
    assert list(published.keys) == []
