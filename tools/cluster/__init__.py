"""A local Kubernetes cluster of one node without Docker: `python -m tools.cluster up|status|load|run|down`."""
