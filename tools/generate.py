"""Generate all code that is made from the contracts: `make gen`.

Writes llamesh/v1 and buf/validate (Python stubs with types, comments of the runtime parameters) and envoy/llamesh.binpb (the
descriptor set that Envoy transcodes with). Runs in the environment of requirements/gen.txt, whose grpcio-tools is the oldest supported
one: stubs refuse a runtime that is older than their compiler, never one that is newer. Needs no network once that environment and the Go
module cache exist.
"""

from __future__ import annotations

import importlib.resources
import json
import shutil
import subprocess
import sys
from pathlib import Path

from comments import write_parameters
from google.protobuf import descriptor_pb2
from google.rpc import status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
THIRD_PARTY = ROOT / ".tools" / "third_party"
VALIDATE = "buf/validate/validate.proto"
ERROR_DETAILS = "google/rpc/error_details.proto"


def collect_third_party() -> None:
    """Copy the imports of the contracts into one folder, each from the package that ships it; none is committed."""
    shutil.rmtree(THIRD_PARTY, ignore_errors=True)
    google = Path(status_pb2.__file__).parent.parent
    for package in ("api", "rpc"):
        target = THIRD_PARTY / "google" / package
        target.mkdir(parents=True)
        for source in (google / package).glob("*.proto"):
            shutil.copyfile(source, target / source.name)
    answer = subprocess.run(
        ["go", "mod", "download", "-json", "github.com/bufbuild/protovalidate"],
        cwd=ROOT / "tools",
        check=True,
        capture_output=True,
        text=True,
    )
    target = THIRD_PARTY / VALIDATE
    target.parent.mkdir(parents=True)
    shutil.copyfile(Path(json.loads(answer.stdout)["Dir"]) / "proto" / "protovalidate" / VALIDATE, target)


def compile_protos(*arguments: str) -> None:
    """Run protoc on the contracts; exit with its status if it fails."""
    builtin = importlib.resources.files("grpc_tools") / "_proto"
    status = protoc.main(["protoc", f"-I{PROTO}", f"-I{THIRD_PARTY}", f"-I{builtin}", *arguments])
    if status:
        sys.exit(status)


def main() -> None:
    """Generate stubs and descriptor set after deleting the old ones, so that a removed contract leaves no file."""
    collect_third_party()
    contracts = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    for folder in (ROOT / "llamesh" / "v1", ROOT / "buf" / "validate"):
        for stale in folder.glob("*_pb2*"):
            stale.unlink()
    compile_protos(f"--python_out={ROOT}", f"--mypy_out=quiet:{ROOT}", VALIDATE, *contracts)
    services = [name for name in contracts if "\nservice " in (PROTO / name).read_text(encoding="utf-8")]
    compile_protos(f"--grpc_python_out={ROOT}", f"--mypy_grpc_out=quiet:{ROOT}", *services)
    compile_protos(
        "--include_imports", f"--descriptor_set_out={ROOT / 'envoy' / 'llamesh.binpb'}", ERROR_DETAILS, *contracts
    )
    write_parameters(runtime_parameters())


def runtime_parameters() -> list[str]:
    """Return the names of the fields of RuntimeParameters, in the order of the contract."""
    made = descriptor_pb2.FileDescriptorSet.FromString((ROOT / "envoy" / "llamesh.binpb").read_bytes())
    messages = (message for file in made.file if file.package == "llamesh.v1" for message in file.message_type)
    return [field.name for message in messages if message.name == "RuntimeParameters" for field in message.field]


if __name__ == "__main__":
    main()
