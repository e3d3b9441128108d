"""What is known beforehand: GPUs by their data sheets and models by their shapes, each with its source."""

from hetsched.catalog.gpus import find_gpu, gpu_kinds, known_gpu
from hetsched.catalog.models import find_model, model_names

__all__ = ["find_gpu", "find_model", "gpu_kinds", "known_gpu", "model_names"]
