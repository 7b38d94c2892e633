"""Amounts of memory for people."""


def size(amount: int) -> str:
    """Format a number of bytes: "512 MiB", "21.4 GiB"."""
    gibibytes = amount / (1 << 30)
    return f"{gibibytes:.1f} GiB" if gibibytes >= 1 else f"{amount / (1 << 20):.0f} MiB"
