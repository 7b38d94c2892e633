"""Users and tokens, and the public management API."""
