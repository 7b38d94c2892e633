"""Policy, resource contracts, keys, admission and the usage ledger."""
