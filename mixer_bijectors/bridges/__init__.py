"""Bridges to nflows, and to torch.distributions and what builds on it."""
