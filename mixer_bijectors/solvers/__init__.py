"""Solvers of triangular systems of equations, independent of layers."""
