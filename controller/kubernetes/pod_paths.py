"""Places in the pod of an engine."""

SPEC_FOLDER = "/etc/llamesh"
SPEC_FILE, OBJECTS_FILE = "engine.json", "objects.json"
MODELS = "/models"
"""Links to the files of models, with the names that llama.cpp expects."""
CACHE = "/var/cache/llamesh"
"""The cache of the node."""
TEMPORARY = "/tmp"  # noqa: S108 - a volume of the pod


def model_folder(model_uuid: str) -> str:
    """Return the folder of the links of a model."""
    return f"{MODELS}/{model_uuid}"
