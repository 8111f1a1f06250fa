"""Layers with random parameters, since zeros hide mistakes."""

from torch import nn


def randomised(layer, std=0.2):
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=std)
    return layer.eval()


def randomised_in_double(layer, std=0.3):
    return randomised(layer, std).double()
