"""Runtime parameters from text: what is on the allow-list is read exactly, everything else is refused by name, whatever the text."""

from __future__ import annotations

import random

import pytest
from google.protobuf.descriptor import FieldDescriptor

from buf.validate import validate_pb2
from llamesh.kit.errors import MeshError, name_of
from llamesh.runtime_parameters import flags
from llamesh.v1 import options_pb2, server_pb2
from llamesh.v1.server_pb2 import RuntimeParameters
from services.contract.flag_parser import check, parse, spellings

FIELDS = list(RuntimeParameters.DESCRIPTOR.fields)

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
--lora /tmp/a.gguf
--lora-scaled /tmp/a.gguf 1
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

# text, the parameter that is named, a part of the message
INVALID = [
    ("2048", "2048", "flag is expected"),
    ("LLAMA_ARG_CTX_SIZE=4096", "LLAMA_ARG_CTX_SIZE=4096", "flag is expected"),
    ("LLAMA_ARG_HOST=0.0.0.0 --mlock", "LLAMA_ARG_HOST=0.0.0.0", "flag is expected"),
    ("ctx-size 2048", "ctx-size", "flag is expected"),
    ("--ctx-size", "--ctx-size", "needs a value"),
    ("--ctx-size=", "--ctx-size", "whole decimal"),
    ("--ctx-size ''", "--ctx-size", "whole decimal"),
    ("--ctx-size 2K", "--ctx-size", "whole decimal"),
    ("--ctx-size 2048;", "--ctx-size", "whole decimal"),
    ("--ctx-size 2048,", "--ctx-size", "whole decimal"),
    ("--ctx-size 1e4", "--ctx-size", "whole decimal"),
    ("--ctx-size 2048.0", "--ctx-size", "whole decimal"),
    ("--ctx-size 0x800", "--ctx-size", "whole decimal"),
    ("--ctx-size 2_048", "--ctx-size", "whole decimal"),
    ("--ctx-size 02048", "--ctx-size", "whole decimal"),
    ("--ctx-size +2048", "--ctx-size", "whole decimal"),
    ("--ctx-size ٢٠٤٨", "٢٠٤٨", "printable ASCII"),
    ("--ctx-size ２０４８", "２０４８", "printable ASCII"),
    ("--ctx-size true", "--ctx-size", "whole decimal"),
    ("--ctx-size 63", "--ctx-size", "64 to 1048576"),
    ("--ctx-size 0", "--ctx-size", "64 to 1048576"),
    ("--ctx-size -1", "--ctx-size", "64 to 1048576"),
    ("--ctx-size 1048577", "--ctx-size", "64 to 1048576"),
    ("--ctx-size 4294968320", "--ctx-size", "64 to 1048576"),
    ("--ctx-size 18446744073709551616", "--ctx-size", "whole decimal"),
    ("--ctx-size " + "9" * 4000, "--ctx-size", "whole decimal"),
    ("--batch-size 0", "--batch-size", "32 to 16384"),
    ("--parallel 100000", "--parallel", "1 to 64"),
    ("--parallel 0", "--parallel", "1 to 64"),
    ("--parallel -0", "--parallel", "whole decimal"),
    ("--predict -2", "--predict", "-1 to 1048576"),
    ("-n 2147483648", "-n", "-1 to 1048576"),
    ("--seed -2", "--seed", "0 to 4294967295, or -1"),
    ("--threads -2", "--threads", "1 to 512, or -1"),
    ("--threads auto", "--threads", "whole decimal"),
    ("--predict auto", "--predict", "whole decimal"),
    ("-ngl -2", "-ngl", "0 to 1000, or all or -1 or auto"),
    ("-ngl ALL", "-ngl", "whole decimal"),
    ("--threads -1 -t 2", "-t", "given twice"),
    ("-nocb --no-cont-batching", "--no-cont-batching", "given twice"),
    ("-nocb false", "false", "flag is expected"),
    ("--model-draft /tmp/d.gguf", "--model-draft", "a path, an address or a repository is not taken"),
    ("-md ../d.gguf", "-md", "a path, an address or a repository is not taken"),
    ("-md org/model", "-md", "a path, an address or a repository is not taken"),
    ("--spec-draft-model=.hidden", "--spec-draft-model", "must be the model_uuid"),
    ("--alias a,b", "--alias", "must be one name"),
    ("--alias 'a b'", "--alias", "must be one name"),
    ("-a -m", "-a", "a flag follows"),
    ("-a=-m", "-a", "must be one name"),
    ("--rope-scaling ntk", "--rope-scaling", "none, linear, yarn"),
    ("--rope-scale 0", "--rope-scale", "0.001 to 1000"),
    ("--rope-scale 2 --rope-freq-scale 0.5", "--rope-scale", "says the same as --rope-freq-scale"),
    ("--rope-scaling none --rope-scale 2", "--rope-scale", "has no effect, because --rope-scaling is none"),
    ("--yarn-ext-factor 2", "--yarn-ext-factor", "-1 to 1"),
    ("--yarn-orig-ctx 1048577", "--yarn-orig-ctx", "0 to 1048576"),
    ("--reranking --pooling mean", "--reranking", "needs pooling rank, and --pooling is given"),
    ("--embd-normalize 2", "--embd-normalize", "has no effect without --embeddings"),
    ("--rerank --embd-normalize 2", "--embd-normalize", "has no effect with pooling rank"),
    ("--embeddings --embd-normalize 65", "--embd-normalize", "-1 to 64"),
    ("--reasoning maybe", "--reasoning", "on, off, auto"),
    ("--reasoning-effort most", "--reasoning-effort", "minimal, low, medium, high, xhigh, max, or default"),
    ("--reasoning off --no-jinja", "--reasoning", "which --no-jinja switches off"),
    ("--chat-template-kwargs xy", "--chat-template-kwargs", "cannot be read"),
    ("--chat-template-kwargs []", "--chat-template-kwargs", "must be a JSON object"),
    ("--chat-template-kwargs 1", "--chat-template-kwargs", "must be a JSON object"),
    ("--chat-template-kwargs '{\"a\": NaN}'", "--chat-template-kwargs", "NaN is no number"),
    ('--chat-template-kwargs \'{"a": 1, "a": 2}\'', "--chat-template-kwargs", "a key is given twice"),
    (f"--chat-template-kwargs '{{\"a\": {'[' * 9}{']' * 9}}}'", "--chat-template-kwargs", "nested deeper than 8"),
    (f"--chat-template-kwargs {'[' * 1000}{']' * 1000}", "--chat-template-kwargs", "must be a JSON object"),
    (f'--chat-template-kwargs \'{{"a": "{"x" * 2048}"}}\'', "--chat-template-kwargs", "at most 2048 characters"),
    (
        "--reasoning on --chat-template-kwargs '{\"enable_thinking\":false}'",
        "--chat-template-kwargs",
        "so does --reasoning",
    ),
    ("--reasoning-budget-message 'a\tb'", "--reasoning-budget-message", "none of them a control character"),
    ("--reasoning-budget-message 'a\x07b'", "'a\x07b'", "cannot be printed"),
    ("--ctx-checkpoints 257", "--ctx-checkpoints", "0 to 256"),
    ("--spec-type draft-mtp", "--spec-type", "none, draft-simple, ngram-simple"),
    ("--spec-type draft-simple", "--spec-type", "needs --model-draft"),
    ("--spec-draft-n-max 5", "--spec-draft-n-max", "needs --model-draft"),
    ("-ctkd q8_0", "-ctkd", "needs --model-draft"),
    ("-md small --spec-type ngram-mod", "--spec-type", "leaves the model of -md unused"),
    ("-md small --spec-draft-n-min 4", "--spec-draft-n-min", "must not be above --spec-draft-n-max, which is 3"),
    ("-md small -ctvd q8_0 -fa off", "-ctvd", "needs flash attention"),
    ("-md small --embeddings", "-md", "is for text, and --embeddings serves none"),
    ("--seed 4294967296", "--seed", "0 to 4294967295"),
    ("--seed=--log-file=x", "--seed", "whole decimal"),
    ("--seed --log-file=x", "--seed", "a flag follows"),
    ("--seed '--log-file=x'", "--seed", "whole decimal"),
    ("--seed --mlock", "--seed", "a flag follows"),
    ("--chat-template --mlock", "--chat-template", "a flag follows"),
    ("--chat-template='--log-file=x'", "--chat-template", "must be one of bailing, "),
    ("--chat-template ../../etc/passwd", "--chat-template", "must be one of bailing, "),
    ("--chat-template /etc/passwd", "--chat-template", "must be one of bailing, "),
    ("--chat-template {{x}}", "--chat-template", "must be one of bailing, "),
    ("--chat-template 'a b'", "--chat-template", "must be one of bailing, "),
    ("--chat-template ''", "--chat-template", "must be one of bailing, "),
    ("--chat-template ChatML", "--chat-template", "must be one of bailing, "),
    ("--chat-template c\u0430hatml", "c\u0430hatml", "printable ASCII"),
    ("--temp nan", "--temp", "decimal number"),
    ("--temp inf", "--temp", "decimal number"),
    ("--temp -inf", "--temp", "a flag follows"),
    ("--temp=-inf", "--temp", "decimal number"),
    ("--temp 1e999", "--temp", "0 to 10"),
    ("--temp 0x1p3", "--temp", "decimal number"),
    ("--temp 0,7", "--temp", "decimal number"),
    ("--temp 0.7f", "--temp", "decimal number"),
    ("--temp 5.", "--temp", "decimal number"),
    ("--temp .", "--temp", "decimal number"),
    ("--temp 1_0", "--temp", "decimal number"),
    ("--temp -0.1", "--temp", "0 to 10"),
    ("--temp 10.1", "--temp", "0 to 10"),
    ("--temp=0.7=1", "--temp", "decimal number"),
    ("--temp 0.7 0.8", "0.8", "flag is expected"),
    ("--rope-freq-base 0", "--rope-freq-base", "above 0, at most 1000000000"),
    ("--rope-freq-base 1e-400", "--rope-freq-base", "above 0"),
    ("--flash-attn", "--flash-attn", "needs a value"),
    ("-fa --mlock", "-fa", "a flag follows"),
    ("-fa yes", "-fa", "on, off, auto"),
    ("-fa 1", "-fa", "on, off, auto"),
    ("-fa ON", "-fa", "on, off, auto"),
    ("-ctk q8", "-ctk", "q8_0"),
    ("-ctk CACHE_TYPE_Q8_0", "-ctk", "q8_0"),
    ("--pooling unspecified", "--pooling", "none, mean"),
    ("--load-mode /dev/mem", "--load-mode", "mmap"),
    ("--mlock true", "true", "flag is expected"),
    ("--mlock=true", "--mlock", "takes no value"),
    ("--mlock=", "--mlock", "takes no value"),
    ("--jinja=false", "--jinja", "takes no value"),
    ("--jinja false", "false", "flag is expected"),
    ("--no-jinja=1", "--no-jinja", "takes no value"),
    ("--ctx-size 2048 --ctx-size 2048", "--ctx-size", "given twice"),
    ("--ctx-size 2048 -c 4096", "-c", "given twice"),
    ("--temp 1 --temperature 1", "--temperature", "given twice"),
    ("--mlock --mlock", "--mlock", "given twice"),
    ("--mlock --no-mmap", "--no-mmap", "given twice"),
    ("--load-mode mlock --mlock", "--mlock", "given twice"),
    ("--jinja --no-jinja", "--no-jinja", "given twice"),
    ("-cb --cont-batching", "--cont-batching", "given twice"),
    ("--ctx-size 2048\x00", "2048\x00", "printable ASCII"),
    ("--ctx-size 2048\x1b[31m", "2048\x1b[31m", "printable ASCII"),
    ("--ctx-size\u00a02048", "--ctx-size\u00a02048", "printable ASCII"),
    ("--ctx-size 2048\ud800", "2048\ud800", "printable ASCII"),
    ("--mlock \x7f", "\x7f", "printable ASCII"),
    ("\u2013\u2013ctx-size 2048", "\u2013\u2013ctx-size", "printable ASCII"),
    ('"--mlock"', "--mlock", "flag is expected"),
    ("'--ctx-size=2048'", "--ctx-size=2048", "flag is expected"),
    ('--ctx-size "2048', '"2048', "quote"),
    ("--ctx-size 20'48'", "20'48'", "quote"),
    ("--ctx-size '20'48", "'20'48", "quote"),
    ("--ctx'-size' 2048", "--ctx'-size'", "quote"),
    ("--ctx-size=2048''", "--ctx-size=2048''", "quote"),
    ("--ctx-size \\'2048\\'", "\\'2048\\'", "quote"),
    ("--ctx-size 128", "--ctx-size", "shared by 4 slots"),
    ("--ctx-size 2048 --parallel 64", "--ctx-size", "shared by 64 slots"),
    ("-b 64 -ub 128", "-ub", "must not be above -b, which is 64"),
    ("--ubatch-size 4096 --batch-size 2048", "--ubatch-size", "which is 2048"),
    ("-ctv q8_0 -fa off", "-ctv", "needs flash attention"),
    ("--flash-attn off --cache-type-v iq4_nl", "--cache-type-v", "needs flash attention"),
    ("--mlock " * 2000, "", "at most 4096"),
    ("-" * 10_240, "", "at most 4096"),
]


def refused(text: str) -> MeshError:
    with pytest.raises(MeshError) as caught:
        parse(text)
    return caught.value


@pytest.mark.parametrize("text", DANGEROUS + UNKNOWN)
def test_what_is_not_on_the_allow_list_is_refused_by_name(text: str) -> None:
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


@pytest.mark.parametrize(("text", "parameter", "message"), INVALID)
def test_malformed_values_are_refused_naming_flag_value_and_bounds(text: str, parameter: str, message: str) -> None:
    error = refused(text)
    assert name_of(error.reason) == "PARAMETER_INVALID"
    assert message in error.message
    if parameter:
        assert error.metadata["parameter"] == parameter.encode("unicode_escape").decode()
    assert error.fields[0].field == "runtime_params"
    # It goes to terminals and logs: short, and nothing in it that they would act on.
    assert len(error.message) < 400
    assert error.message.isprintable()
    assert error.message.isascii()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        ("   ", ""),
        ("--ctx-size 2048", "--ctx-size 2048"),
        ("-c 2048", "--ctx-size 2048"),
        ("--ctx-size=2048", "--ctx-size 2048"),
        ("-c=2048", "--ctx-size 2048"),
        ("  --ctx-size   '2048' ", "--ctx-size 2048"),
        ('--ctx-size="2048"', "--ctx-size 2048"),
        ("-fa on --mlock", "--flash-attn on --load-mode mlock"),
        ("--no-mmap", "--load-mode none"),
        ("--mmap", "--load-mode mmap"),
        ("-lm auto", "--load-mode auto"),
        ("--no-jinja --warmup", "--no-jinja --warmup"),
        ("--temp .7", "--temp 0.7"),
        ("--temp 1e-05", "--temp 1e-05"),
        ("--temp -0", "--temp 0.0"),
        ("--presence-penalty -1.5", "--presence-penalty -1.5"),
        ("-n -1", "--predict -1"),
        ("-ctk q8_0 -ctv q8_0", "--cache-type-k q8_0 --cache-type-v q8_0"),
        ("-ctv bf16 -fa off", "--flash-attn off --cache-type-v bf16"),
        ("--temp 1 --ctx-size 512 --parallel 2", "--ctx-size 512 --parallel 2 --temp 1.0"),
        ("-c 64 -kvu", "--ctx-size 64 --kv-unified"),
        ("-c 64 -np 1", "--ctx-size 64 --parallel 1"),
        ("--chat-template chatml", "--chat-template chatml"),
        ("--ctx-size\t2048", "--ctx-size 2048"),
        ("--ctx-size 2048\r\n--parallel 2\n", "--ctx-size 2048 --parallel 2"),
        ("--threads -1 -tb -1 --seed -1 -np -1 -ngl auto", ""),
        ("-ngl -1", ""),
        ("-ngl all", "--gpu-layers 1000"),
        ("-nocb -no-kvu", "--no-cont-batching --no-kv-unified"),
        (
            "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 32768",
            "--rope-scaling yarn --rope-scale 4.0 --yarn-orig-ctx 32768",
        ),
        ("--rerank", "--reranking"),
        ("--embeddings --embd-normalize -1", "--embeddings --embd-normalize -1"),
        ("-rea off --reasoning-effort default", "--reasoning off"),
        ("--reasoning-effort=high", "--reasoning-effort high"),
        ("--chat-template-kwargs '{\"a\": true}'", "--chat-template-kwargs '{\"a\": true}'"),
        ('--chat-template-kwargs "{\\"a\\": true}"', "--chat-template-kwargs '{\"a\": true}'"),
        ("--chat-template-kwargs={}", "--chat-template-kwargs {}"),
        ("--reasoning-budget-message 'so'", "--reasoning-budget-message so"),
        (
            '--reasoning-budget-message "It\'s \\"fin\u00ed\\" \\\\"',
            '--reasoning-budget-message "It\'s \\"fin\u00ed\\" \\\\"',
        ),
        ("--ctx-checkpoints 8 -cms 0", "--ctx-checkpoints 8 --checkpoint-min-step 0"),
        ("-a org/name:tag", "--alias org/name:tag"),
        (
            "-md small --spec-draft-n-max 8 -ngld all",
            "--model-draft small --spec-draft-n-max 8 --gpu-layers-draft 1000",
        ),
        ("--spec-type ngram-mod", "--spec-type ngram-mod"),
    ],
)
def test_good_text_is_read_and_written_canonically(text: str, canonical: str) -> None:
    assert flags(parse(text)) == canonical
    assert parse(canonical) == parse(text)


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


def test_every_field_has_a_flag_and_no_spelling_means_two_things() -> None:
    spelt = [
        item
        for field in FIELDS
        for option in [field.GetOptions().Extensions[options_pb2.llama]]
        for item in [
            option.flag,
            *option.aliases,
            *([option.negative] if option.negative else []),
            *option.negative_aliases,
        ]
        + [implied.flag for implied in option.implied]
    ]
    assert len(spelt) == len(set(spelt)) == len(spellings())
    assert all(item.startswith("-") for item in spelt)


TEXTS = {
    "alias": ["a", "org/name:tag", "x" * 128],
    "chat_template_kwargs": ["{}", '{"a": "it\'s", "b": [1, "\\\\ \\""]}', '{\n "a": null\n}'],
    "model_draft": ["small", "Qwen-0.5B.Q4_0"],
    "reasoning_budget_message": ["so", "It's enough.", 'an "end"', "\\", "'\\\"", "\u00fcber", "--mlock", "-1"],
}
"""Values of texts that are not chosen from a list."""

TOGETHER: dict[str, dict[str, object]] = {
    "ctx_size": {"parallel": 1, "batch_size": 16384},
    "ubatch_size": {"parallel": 1, "batch_size": 16384},
    "embd_normalize": {"embeddings": True},
    "spec_type": {"model_draft": "small"},
    "spec_draft_n_max": {"model_draft": "small"},
    "spec_draft_n_min": {"model_draft": "small", "spec_draft_n_max": 64},
    "spec_draft_p_min": {"model_draft": "small"},
    "gpu_layers_draft": {"model_draft": "small"},
    "cache_type_k_draft": {"model_draft": "small"},
    "cache_type_v_draft": {"model_draft": "small"},
}
"""What else has to be given with a parameter."""


def value_within_bounds(field: FieldDescriptor, rng: random.Random) -> bool | int | float | str:
    """A random value of a field, its bounds included."""
    if field.type == FieldDescriptor.TYPE_BOOL:
        negative = field.GetOptions().Extensions[options_pb2.llama].negative
        return rng.random() < 0.5 or not negative
    if field.enum_type:
        return rng.choice([value.number for value in field.enum_type.values if value.number])
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(list(getattr(rules.string, "in")) or TEXTS[field.name])
    kind = rules.WhichOneof("type")
    rule = getattr(rules, kind) if kind else None
    low = (rule.gte or rule.gt) if rule else 0
    high = rule.lte if rule else 2**32 - 1
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return rng.choice([high, rng.uniform(low, high) or high, 10 ** rng.uniform(-6, 0) * high])
    return rng.choice([low, high, rng.randint(low, high)])


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_each_field_alone_survives_the_round_trip(field: FieldDescriptor) -> None:
    rng = random.Random(field.number)
    for _ in range(10):
        parameters = RuntimeParameters(**TOGETHER.get(field.name, {}) | {field.name: value_within_bounds(field, rng)})
        if field.name == "spec_type" and parameters.spec_type != server_pb2.SPECULATIVE_TYPE_DRAFT_SIMPLE:
            parameters.ClearField("model_draft")
        assert parse(flags(parameters)) == parameters


def test_random_sets_of_fields_survive_the_round_trip() -> None:
    rng = random.Random(20261124)
    kept = 0
    for _ in range(300):
        chosen = rng.sample(FIELDS, rng.randint(1, 12))
        parameters = RuntimeParameters(**{field.name: value_within_bounds(field, rng) for field in chosen})
        try:
            check(parameters)
        except MeshError:
            with pytest.raises(MeshError):  # typed or spelt: the same rules
                parse(flags(parameters))
            continue
        kept += 1
        assert parse(flags(parameters)) == parameters
    assert kept > 50


BOUNDED = [field for field in FIELDS if field.GetOptions().Extensions[validate_pb2.field].WhichOneof("type")]


@pytest.mark.parametrize("field", BOUNDED, ids=lambda field: field.name)
def test_typed_values_out_of_bounds_name_the_canonical_flag(field: FieldDescriptor) -> None:
    flag = field.GetOptions().Extensions[options_pb2.llama].flag
    rules = field.GetOptions().Extensions[validate_pb2.field]
    kind = rules.WhichOneof("type")
    if field.enum_type:
        wrong: list[object] = [0]
    elif kind == "string":
        wrong = ["", "\n", "x" * 2049]
    else:
        wrong = [getattr(rules, kind).lte + 1]
    for value in wrong:
        with pytest.raises(MeshError) as caught:
            check(RuntimeParameters(**{field.name: value}))
        assert name_of(caught.value.reason) == "PARAMETER_INVALID"
        assert caught.value.metadata["parameter"] == flag


def test_every_number_has_a_least_and_a_most() -> None:
    numbers = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_DOUBLE)
    for field in FIELDS:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        if field.type not in numbers or field.name == "seed":  # whose bounds are those of its 32 bits
            continue
        rule = getattr(rules, rules.WhichOneof("type"))
        assert rule.HasField("lte"), field.name
        assert rule.HasField("gte") or rule.HasField("gt") or field.type == FieldDescriptor.TYPE_UINT32, field.name


def test_whatever_the_text_nothing_but_a_refusal_is_raised() -> None:
    rng = random.Random(7)
    pieces = [
        *spellings(),
        *(value for enum in server_pb2.DESCRIPTOR.enum_types_by_name.values() for value in enum.values_by_name),
        *[
            "2048",
            "-1",
            "0.5",
            "on",
            "off",
            "q8_0",
            "chatml",
            "=",
            "'",
            '"',
            " ",
            "  ",
            "\\",
            "\0",
            "\n",
            "\t",
            "--",
            "-",
        ],
        *["é", "\U0001f600", "\ud800", "9" * 30, "1e5", "nan", "_", "x" * 200],
    ]
    accepted, reasons = 0, set()
    for _ in range(20_000):
        parts = rng.choices(pieces, k=rng.randint(1, 8))
        text = rng.choice(["", " ", " "]).join(parts)
        if rng.random() < 0.3 and text:
            at = rng.randrange(len(text))
            text = text[:at] + chr(rng.randrange(0x250)) + text[at + rng.randint(0, 1) :]
        try:
            parameters = parse(text)
        except MeshError as error:
            reasons.add(name_of(error.reason))
            error.status().SerializeToString()
            continue
        accepted += 1
        assert parse(flags(parameters)) == parameters
    assert accepted > 100
    assert reasons == {"PARAMETER_UNKNOWN", "PARAMETER_INVALID"}
