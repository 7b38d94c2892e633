"""The contracts as Python: generated from proto/ by `make gen`, never edited."""
