"""Flags that are not on the allow-list are refused by name, whatever their form; the refusal names the nearest one that is."""

from __future__ import annotations

import pytest

from llamesh.kit.errors import name_of
from tests.unit.refused_flags import refused

# Flags of llama-server that run programs, read or write files, open the network or change who may call. None is on the allow-list.
DANGEROUS = """
--tools all
--tools exec_shell_command
--tools write_file
--agent
--mcp-servers-json [{command:sh}]
--mcp-servers-config /tmp/mcp.json
--tools-runtime docker:alpine
--tools-runtime ssh:root@host
--ui-mcp-proxy
--rpc 10.0.0.1:50052
--model /etc/passwd
-m /etc/passwd
--model-url http://169.254.169.254/
-mu http://169.254.169.254/
-hf evil/model
--hf-repo evil/model
--hf-token abc
-dr evil/model
--docker-repo evil/model
--mmproj /etc/passwd
--mmproj-url http://169.254.169.254/
--slot-save-path /tmp
--slot_save_path /tmp
--log-file /tmp/x
--log-prompts-dir /tmp
--media-path /
--path /
--models-dir /
--models-preset /tmp/p.ini
--lora-init-without-apply
--control-vector /tmp/a.gguf
--chat-template-file /etc/passwd
--grammar-file /etc/passwd
--json-schema-file /etc/passwd
--video-ffmpeg-dir /tmp
--api-key secret
--api-key-file /etc/passwd
--ssl-key-file /etc/passwd
--ssl-cert-file /etc/passwd
--props
--slots
--metrics
--host 0.0.0.0
--port 22
--reuse-port
--api-prefix /x
--cors-origins *
--cors-allow-credentials
--sleep-idle-seconds 1
--threads-http 1
--spec-draft-hf evil/model
--override-kv a=int:1
--override-tensor x=CPU
--prompt-cache /tmp/x
--file /etc/passwd
-f /etc/passwd
--numa distribute
--prio 3
--cpu-mask ff
--verbose
--webui-config-file /tmp/x
--no-webui
--version
--help
--list-devices
--completion-bash
""".strip().splitlines()

UNKNOWN = [
    "--LLAMA_ARG_HOST=0.0.0.0",
    "--env LLAMA_ARG_HOST",
    "--ctx_size 2048",
    "--CTX-SIZE 2048",
    "--Ctx-Size 2048",
    "---ctx-size 2048",
    "-ctx-size 2048",
    "-c2048",
    "--ctx-siz 2048",
    "--ctx-size2048",
    "--ctx-size:2048",
    "-C 2048",
    "-",
    "--",
    "--=",
    "-=-",
    "-1",
    "--no-ctx-size",
    "--no-embeddings",
    "--no-swa-full",
    "--no-mlock",
    "--mlock;id",
    "--mlock&&id",
    "--mlock|id",
    "--$(id)",
    "--`id`",
    "-" + "x" * 4000,
]


@pytest.mark.parametrize("text", DANGEROUS + UNKNOWN)
def test_a_flag_that_is_not_on_the_allow_list_is_refused_by_name(text: str) -> None:
    error = refused(text)
    flag = text.split()[0].split("=")[0]
    assert name_of(error.reason) == "PARAMETER_UNKNOWN"
    assert error.metadata["parameter"] == (flag if len(flag) <= 64 else flag[:61] + "...")
    # A value may be a secret: only the flag comes back.
    assert "passwd" not in str(error)


@pytest.mark.parametrize("text", DANGEROUS)
def test_a_dangerous_flag_is_refused_after_good_ones_and_in_every_form(text: str) -> None:
    flag, _, value = text.partition(" ")
    for form in (f"--ctx-size 2048 {text}", f"{flag}={value or 1}", f"{text} --mlock"):
        assert name_of(refused(form).reason) == "PARAMETER_UNKNOWN"
    assert name_of(refused(f"--seed {flag}").reason) == "PARAMETER_INVALID"
    assert name_of(refused(f"--chat-template='{text}'").reason) == "PARAMETER_INVALID"


def test_a_misspelt_flag_is_answered_with_the_nearest() -> None:
    assert refused("--ctx_size 1").metadata["suggestion"] == "--ctx-size"
    assert "did you mean --flash-attn?" in refused("--flash-attention on").message
    assert "suggestion" not in refused("--api-key-file x").metadata


def test_a_flag_of_llama_server_that_may_not_be_given_is_refused_with_the_reason_and_the_nearest() -> None:
    error = refused("--tensor-split 3,1")
    assert error.message == (
        "--tensor-split is not a parameter that a server may be given: tensors are placed by the number of layers on the GPU alone; "
        "patterns and devices are not checked against what the machine has; use --split-mode"
    )
    assert error.metadata["suggestion"] == "--split-mode"
    assert refused("-ts 3,1").metadata["suggestion"] == "--split-mode"
    assert refused("--tensor_split 3,1").metadata["suggestion"] == "--split-mode"
    assert refused("--port 80").message == (
        "--port is set by llamesh: engines listen on sockets that only the front door uses"
    )
    assert refused("--help").message == "--help has no meaning here: it prints something and ends the program"
