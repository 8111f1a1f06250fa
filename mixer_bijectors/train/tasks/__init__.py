"""What a trained model is used for: samples, scores, embeddings, reconstructions."""

from .flow_trainer import FlowTrainer

__all__ = ["FlowTrainer"]
