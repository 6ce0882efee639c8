"""herd: the Llama 3.1 system, from raw text to a documented, guarded family of models, in one package."""

__version__ = "0.1.0"
