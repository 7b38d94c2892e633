"""The program that quantises: `python -m services.quant.step.quantiser SOURCE TARGET TYPE THREADS [OPTIONS]`.

The options are --allow-requantize, --pure and --imatrix MATRIX. It is llama.cpp's own quantiser from the package `cyllama`, which takes no
matrix, or the program in LLAMA_QUANTIZE_BIN. It runs in a process of its own because llama.cpp gives the reason of a refusal on standard
error only, and may abort. On Linux it ends with the step that started it.
"""

from __future__ import annotations

import os
import sys

from llamesh.tether import kill_with_parent
from services.quant.quantisations import QUANTISATIONS


def main(words: list[str]) -> int:
    """Quantise and return the exit code. Does not return if LLAMA_QUANTIZE_BIN replaces this program."""
    source, target, of_type, threads, *options = words
    # Also applies to the program that replaces this one.
    kill_with_parent()
    if program := os.environ.get("LLAMA_QUANTIZE_BIN"):
        os.execvp(program, [program, *options, source, target, of_type, threads])  # noqa: S606 - a program, no shell
    from cyllama.llama import llama_cpp

    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.ftype = QUANTISATIONS[of_type].file_type
    parameters.nthread = int(threads)
    parameters.allow_requantize = "--allow-requantize" in options
    parameters.pure = "--pure" in options
    try:
        llama_cpp.model_quantize(source, target, parameters)
    except Exception as error:
        # The rest of the message has paths of this machine.
        sys.stderr.write(f"\n{str(error).partition(' (input=')[0]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
