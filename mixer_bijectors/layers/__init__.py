"""Bijections of vectors, of the mixer matrix and of images."""
