"""Options that are lengths of time take what people write, and refuse the rest in words."""

from __future__ import annotations

import pytest

from llamesh.durations import seconds


@pytest.mark.parametrize(
    ("words", "length"),
    [("90", 90), ("0", 0), ("0.5", 0.5), ("30s", 30), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("2D", 172800)],
)
def test_common_spellings_of_durations_are_read(words: str, length: float) -> None:
    assert seconds(words) == length


@pytest.mark.parametrize("words", ["", "s", "-5", "nan", "inf", "1e3", "10 minutes", "5m1h", "1h30x", "9999999d"])
def test_a_text_that_is_not_a_duration_is_refused_by_name(words: str) -> None:
    with pytest.raises(ValueError, match=r"is not a length of time|longer than"):
        seconds(words)
