"""Runs jobs as workflows of Argo Workflows on a Kubernetes cluster (docs/adr/0045-jobs-on-argo-workflows.md)."""
