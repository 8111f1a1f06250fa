"""Solvers of triangular equations, which know nothing of layers."""
