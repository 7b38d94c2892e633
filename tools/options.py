"""Write the command's messages about refused options of llama-server: `make gen`.

The table is in the contract service, which the command does not import, so its refusals are copied to `llamesh/v1`.
"""

from __future__ import annotations

import json

from services.contract.flag_parser import unknown
from services.contract.llama_options import options
from tools.comments import ROOT

REFUSALS = ROOT / "llamesh" / "v1" / "refused_options.json"


def refusals() -> str:
    """Write the refusal of each option, by each of its spellings, as JSON."""
    return json.dumps({flag: unknown(flag).message for flag in sorted(options())}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    REFUSALS.write_text(refusals(), encoding="utf-8")
