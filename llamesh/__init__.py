"""llamesh: serve llama.cpp models on your own hardware, through typed contracts."""

__version__ = "0.1.0"
