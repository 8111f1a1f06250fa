"""Training with Lightning; needs the extra `train`."""
