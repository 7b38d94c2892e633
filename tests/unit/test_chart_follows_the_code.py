"""The chart in deploy/chart agrees with the code where Helm does not look."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
import yaml
from pydantic import SecretStr, ValidationError

from llamesh.kit.config import Settings
from llamesh.kit.member_calls import CALLS
from llamesh.names import MEMBERS
from tests.unit.house import ROOT
from tools.infra import PLACEHOLDER

CHART = ROOT / "deploy" / "chart"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
SETTING = re.compile(r"\b(?:LLAMESH|MINIO|QUANT|JWT|DATABASE|ALLOWED|HF)_[A-Z0-9_]+(?=:|\"| )")


def text_of(name: str) -> str:
    return (CHART / "templates" / name).read_text(encoding="utf-8")


def defined(name: str) -> str:
    """A text that a template defines."""
    found = re.search(rf'define "{re.escape(name)}" -}}}}\n(.*?){{{{- end', text_of("_names.tpl"), re.DOTALL)
    assert found
    return found[1]


def test_its_version_is_that_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert chart["version"] == chart["appVersion"] == version


def test_it_lets_exactly_those_call_whose_code_does() -> None:
    served = {
        "llamesh.v1.GatewayService": "gateway",
        "llamesh.v1.SigningKeyService": "gateway",
        "llamesh.v1.StandingService": "gateway",
        "llamesh.v1.ContractService": "contract",
        "llamesh.v1.AdmissionService": "contract",
        "envoy.service.auth.v3.Authorization": "contract",
        "envoy.service.accesslog.v3.AccessLogService": "contract",
        "llamesh.v1.DownloadService": "download",
        "llamesh.v1.CatalogueService": "download",
        "llamesh.v1.CheckpointService": "download",
        "llamesh.v1.ControllerService": "controller",
        "envoy.service.discovery.v3.AggregatedDiscoveryService": "controller",
        "llamesh.v1.QuantService": "quant",
    }
    wanted: dict[str, set[str]] = {}
    for service, callers in CALLS.items():
        # Health and metrics, which the gateway asks of all, and what Envoy asks of the members that it knows anyway.
        callees = [served[service]] if service in served else []
        for name in callees:
            wanted.setdefault(name, set()).update(callers)
    for name in set(served.values()) - {"gateway"}:
        wanted[name].add("gateway")
    assert {name: set(found) for name, found in yaml.safe_load(defined("llamesh.callers")).items()} == wanted


def test_it_sets_what_are_settings() -> None:
    names = {str(choice) for field in Settings.model_fields.values() for choice in field.validation_alias.choices}  # type: ignore[union-attr]
    names |= {"LLAMESH_HOME"}
    found = {name for file in ("configmap.yaml", "members.yaml") for name in SETTING.findall(text_of(file))}
    assert len(found) > 20
    assert found - names == set()


def test_it_has_the_members() -> None:
    assert set(MEMBERS) <= set(VALUES)
    assert set(yaml.safe_load(defined("llamesh.ports"))) == {*MEMBERS, "waker", "probe"} - {"envoy"}


def test_each_value_has_a_type_and_no_other_is_taken() -> None:
    def check(values: dict[str, object], schema: dict[str, object], path: str) -> None:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return
        assert schema["additionalProperties"] is False, path
        assert set(values) == set(properties) - {"global"} or path.endswith(("resources", "extra")), path
        for name, value in values.items():
            if isinstance(value, dict):
                check(value, properties[name], f"{path}.{name}")

    check(VALUES, SCHEMA, "")


def test_the_plain_secrets_have_placeholders_which_no_member_starts_with() -> None:
    for secret in yaml.safe_load_all((ROOT / "deploy" / "infra" / "secrets.yaml").read_text(encoding="utf-8")):
        for name, text in secret["stringData"].items():
            assert text == PLACEHOLDER or not name.endswith(("_SECRET", "_KEY", "_PASSWORD"))
    with pytest.raises(ValidationError, match="at least 32 characters"):
        Settings(jwt_secret=SecretStr(PLACEHOLDER))
