"""llama.cpp as the embedded library: the child process `python -m engine.embedded SPEC.json`.

It is a separate process because the library holds Python's global lock while it loads, and ends the process when it fails. Invariant: it
ends when its standard input ends, so it never outlives the engine that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.cores import threads
from engine.failure import REPORT_PREFIX, EngineError, FailureReason
from engine.launch import VERBOSITY
from engine.parameters import launch_settings, scaled_files
from engine.spec import EngineSpec
from engine.thread_yielding import yielding
from llamesh import listeners
from llamesh.cores import cores
from llamesh.runtime_parameters import Setting, Value
from llamesh.shutdown import STOP

_LIBGOMP_REMEDY = (
    "libgomp.so.1 is missing, which llama.cpp needs. Install it: `apt-get install libgomp1` (Debian, Ubuntu), "
    "`dnf install libgomp` (Fedora, RHEL), `zypper install libgomp1` (openSUSE), `pacman -S gcc-libs` (Arch)"
)
_NOT_INSTALLED = (
    "the embedded llama.cpp is not installed: `pip install xllamacpp`, or set LLAMA_SERVER_BIN to a llama-server"
)
_SPELLINGS = {"ON": "ENABLED", "OFF": "DISABLED"}
_CHOSEN = {
    "sampling.min_p": "MIN_P",
    "sampling.penalty_last_n": "PENALTY_LAST_N",
    "sampling.penalty_repeat": "PENALTY_REPEAT",
    "sampling.temp": "TEMP",
    "sampling.top_k": "TOP_K",
    "sampling.top_p": "TOP_P",
}
"""Attributes that must be marked as set by the user; otherwise a value in the model's file (`general.sampling`) replaces them."""


def library() -> Any:
    """Import the library's module. Raises EngineError(NO_LLAMA_CPP) with the remedy."""
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        raise EngineError(FailureReason.NO_LLAMA_CPP, _NOT_INSTALLED) from error
    except ImportError as error:
        cause = _LIBGOMP_REMEDY if "libgomp" in str(error) else f"the embedded llama.cpp does not load: {error}"
        raise EngineError(FailureReason.NO_LLAMA_CPP, cause) from error
    return xllamacpp


def common_params(xllamacpp: Any, spec: EngineSpec, settings: Sequence[Setting]) -> Any:
    """Build the library's CommonParams for a spec. Raises EngineError(BAD_SPEC) for a parameter that the library does not know."""
    params = xllamacpp.CommonParams()
    params.model.path = str(spec.model)
    if spec.projector is not None:
        params.mmproj.path = str(spec.projector)
    params.model_alias = {spec.alias}
    params.hostnames = [spec.listen.host]
    params.port = spec.listen.port
    params.n_threads_http = spec.http_threads
    params.api_keys = [spec.api_key] if spec.api_key else []
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    params.offline = True
    params.verbosity = VERBOSITY
    params.default_template_kwargs = {"preserve_reasoning": "true"}
    for setting in settings:
        assign(params, setting)
    return params


def assign(params: Any, setting: Setting) -> None:
    """Set one parameter on CommonParams. Raises EngineError(BAD_SPEC), which names the flag."""
    try:
        if setting.name in _OWN:
            _OWN[setting.name](params, setting.value)
        else:
            _set(params, setting.embedded, setting.value)
        if setting.embedded in _CHOSEN:
            chosen = library().common_params_sampling_config[
                f"COMMON_PARAMS_SAMPLING_CONFIG_{_CHOSEN[setting.embedded]}"
            ]
            params.sampling.user_sampling_config |= chosen
    except (AttributeError, ValueError, TypeError, OverflowError) as error:
        raise EngineError(
            FailureReason.BAD_SPEC, f"{setting.flag}: the embedded llama.cpp does not support this: {error}"
        ) from error


def _set(params: Any, path: str, value: Value) -> None:
    *parents, name = path.split(".")
    owner = params
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, _converted(value, getattr(owner, name)))


def _template_variables(params: Any, variables: Mapping[str, object]) -> None:
    """Add variables of the chat template; the library keeps each as JSON."""
    known = params.default_template_kwargs
    params.default_template_kwargs = known | {
        name: json.dumps(value, ensure_ascii=False, separators=(",", ":")) for name, value in variables.items()
    }


def _rerank(params: Any, value: Value) -> None:
    params.embedding = bool(value)
    if value:
        _set(params, "pooling_type", "rank")


def _adapters(params: Any, value: Value) -> None:
    """The library copies the list when it is assigned."""
    found = []
    for path, scale in scaled_files(str(value)):
        adapter = library().CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, scale
        found.append(adapter)
    params.lora_adapters = found


def _projector(params: Any, value: Value) -> None:
    params.no_mmproj = not value


def _reason(params: Any, value: Value) -> None:
    params.enable_reasoning = {"on": 1, "off": 0, "auto": -1}[str(value)]
    if value != "auto":
        _template_variables(params, {"enable_thinking": value == "on"})


def _preserve(params: Any, value: Value) -> None:
    params.preserve_reasoning_specified = True
    _template_variables(params, {"preserve_reasoning": value})


def _speculate(params: Any, value: Value) -> None:
    [none] = params.speculative.types
    params.speculative.types = [none, _converted(value, none)]


def _scale(params: Any, value: Value) -> None:
    params.rope_freq_scale = 1 / float(value)


def _timeout(params: Any, value: Value) -> None:
    params.timeout_read = params.timeout_write = int(value)


_OWN: Mapping[str, Callable[[Any, Value], None]] = {
    "chat_template_kwargs": lambda params, value: _template_variables(params, json.loads(str(value))),
    "lora": _adapters,
    "mmproj_auto": _projector,
    "reasoning": _reason,
    "reasoning_effort": lambda params, value: _template_variables(params, {"reasoning_effort": value}),
    "reasoning_preserve": _preserve,
    "reranking": _rerank,
    "rope_scale": _scale,
    "spec_type": _speculate,
    "timeout": _timeout,
}
"""Parameters whose flag does more in llama-server than set one attribute: each function does what llama-server's parser does."""


def _converted(value: bool | int | float | str, current: Any) -> Any:
    """Convert a value to the type of the attribute that it replaces. Enum members are found by the end of their name."""
    if not isinstance(current, enum.Enum):
        return type(current)(value)
    spelled = str(value).upper().replace("-", "_")
    ending = f"_{_SPELLINGS.get(spelled, spelled)}"
    names = [name for name in type(current).__members__ if name.endswith(ending)]
    if not names:
        raise ValueError(f"{value!r} is not one of its values")
    # Choose the shortest name, because MMAP_MLOCK also ends with MLOCK.
    return type(current)[min(names, key=len)]


def _hand_over(spec: EngineSpec) -> None:
    """Send the listening socket to the supervising process, which keeps the backlog if this process dies."""
    if spec.listen.socket is None:
        return
    with socket.socket(fileno=os.dup(0)) as channel, contextlib.suppress(OSError):
        try:
            with listeners.own(spec.listen.host) as listener:
                listeners.hand_over(channel, listener)
        except listeners.NoListenerError as error:
            # The engine runs without a duplicate: see engine.listener.
            sys.stderr.write(f"{REPORT_PREFIX}the listening socket cannot be sent: {error}\n")
            listeners.hand_over(channel, None)


def _flush_log(xllamacpp: Any) -> None:
    """Wait until llama.cpp's logging thread has written everything: otherwise the process may end first (1 of 300 failed starts)."""
    native = ctypes.CDLL(sys.modules[xllamacpp.Server.__module__].__file__)
    # C++ functions of common/log.h, which the wrapper does not export. Without them, only log lines may be lost.
    with contextlib.suppress(AttributeError):
        main_log = native["_Z15common_log_mainv"]
        main_log.restype = ctypes.c_void_p
        native["_Z16common_log_flushP10common_log"](ctypes.c_void_p(main_log()))


def main(spec_file: Path) -> int:
    """Serve until standard input ends. The exit code is a `FailureReason`, and the last line explains it."""
    # SIGTERM ends this process at once: the sender has already waited for running requests.
    signal.signal(STOP, signal.SIG_DFL)
    try:
        spec = EngineSpec.read(spec_file)
        xllamacpp = library()
        own = cores()
        new_yielder = yielding(own, os.environ)
        settings = launch_settings(spec, threads(own, yields=new_yielder is not None))
        params = common_params(xllamacpp, spec, settings)
    except EngineError as failure:
        sys.stderr.write(f"{REPORT_PREFIX}{failure}\n")
        return failure.reason.value
    try:
        _serving = xllamacpp.Server(params)
    except RuntimeError:
        # llama.cpp has logged the reason; the supervising process reads it there. 1 is no FailureReason, so the log decides.
        _flush_log(xllamacpp)
        return 1
    _hand_over(spec)
    most = max(int(setting.value) for setting in settings if setting.name in ("threads", "threads_batch"))
    yielder = new_yielder(most) if new_yielder and most > 1 else None
    # Until standard input ends, check regularly whether other processes need the cores.
    while not select.select([0], [], [], yielder.adjust() if yielder else None)[0] or os.read(0, 4096):
        pass
    # Skip the library's destructor, which takes 30 s while a request runs.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
