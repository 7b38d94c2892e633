"""Runtime parameters from text: flags of the allow-list are read exactly, and every set of parameters survives the round trip."""

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
    "lora": ["style", "style:0.5,law", "a:-1"],
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


def test_any_text_is_either_parsed_or_refused() -> None:
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
