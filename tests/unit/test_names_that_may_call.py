"""LLAMESH_ALLOWED_ORIGINS and LLAMESH_ALLOWED_HOSTS: what is accepted matches, what never could is refused with the remedy."""

from __future__ import annotations

import re

import pytest

from llamesh.kit.config_loading import WrongSettingsError, load_settings
from llamesh.kit.origins import expression, read_host, read_origin


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://localhost:5173", "http://localhost:5173"),
        ("HTTPS://UI.Example.com", "https://ui.example.com"),
        ("https://ui.example.com:443", "https://ui.example.com"),
        ("http://ui:80", "http://ui"),
        ("http://ui:443", "http://ui:443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://192.168.1.5", "http://192.168.1.5"),
        ("https://*.example.com", "https://*.example.com"),
        ("https://*.example.com:8443", "https://*.example.com:8443"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("tauri://localhost", "tauri://localhost"),
    ],
)
def test_an_origin_is_read_as_browsers_write_it(text: str, origin: str) -> None:
    assert read_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        *("*", "null", "ui.example.com", "http://", "http://ui/", "http://ui/path", "http://a b", "http://ui:port"),
        *(
            "http://*.example.com",
            "https://*.com",
            "https://*",
            "https://a.*.com",
            "https://*example.com",
            "https://*.*.com",
        ),
        *("*.example.com", "https://*.example.com/", "https://user@ui", "https://*.example..com"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LLAMESH_ALLOWED_ORIGINS", f"http://localhost:5173,{text}")
    with pytest.raises(WrongSettingsError) as error:
        load_settings()
    line = str(error.value)
    assert line.startswith("setting LLAMESH_ALLOWED_ORIGINS: ")
    assert text in line
    assert "https://*.example.com" in line or "http://localhost:5173" in line


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://a.example.com", True),
        ("https://a-1.b.example.com", True),
        ("https://example.com", False),
        ("http://a.example.com", False),
        ("https://a.example.com:8443", False),
        ("https://a.example.com.evil", False),
        ("https://aexample.com", False),
        ("https://aXexample.com", False),
        ("https://a/.example.com", False),
        ("https://.example.com", False),
    ],
)
def test_a_pattern_stands_for_all_below_a_domain(origin: str, allowed: bool) -> None:
    assert bool(re.fullmatch(expression("https://*.example.com"), origin)) is allowed


@pytest.mark.parametrize(
    ("text", "host"), [("LLM.Example.com.", "llm.example.com"), ("10.0.0.1", "10.0.0.1"), ("[fd00::1]", "[fd00::1]")]
)
def test_a_host_name_is_read_as_requests_are(text: str, host: str) -> None:
    assert read_host(text) == host


@pytest.mark.parametrize("text", ["llm:8080", "http://llm", "*", "*.example.com", "a b", "llm/"])
def test_a_host_name_that_could_never_match_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LLAMESH_ALLOWED_HOSTS", text)
    with pytest.raises(WrongSettingsError) as error:
        load_settings()
    line = str(error.value)
    assert line.startswith("setting LLAMESH_ALLOWED_HOSTS: ")
    assert "without scheme, port and pattern" in line
