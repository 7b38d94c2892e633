"""The cluster as the controller sees it: declared servers as ModelServe objects, engines as pods of Deployments. See ADR 46."""
