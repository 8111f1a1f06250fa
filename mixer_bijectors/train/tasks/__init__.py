"""The tasks of trained models: samples, scores, embeddings, reconstructions."""

from .flow_trainer import FlowTrainer
from .output import Output
from .prediction import predict_images

__all__ = ["FlowTrainer", "Output", "predict_images"]
