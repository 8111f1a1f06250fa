"""A module that takes the place of a layer in a model, and holds that layer."""

import re
from typing import Any

from torch import nn

from .._dependencies import child_modules, module_versions

__all__ = ["LayerWrapper"]


class LayerWrapper(nn.Module):
    """Holds a layer as `flow`, with the attributes and the state_dict keys of that layer.

    So it can be put into a model and taken out again: checkpoints of the model with and without
    it are the same.
    """

    flow: Any

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.training = flow.training
        self.flow = flow
        self.register_state_dict_post_hook(_remove_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)
        self.register_load_state_dict_post_hook(_remove_prefix_in_messages)

    def __getattr__(self, name: str) -> Any:
        """An attribute of the layer, such as its net, where the wrapper has none."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "flow" or name.startswith("_"):
                raise
            return getattr(self.flow, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute on the layer, if the layer has it and the wrapper does not."""
        layer = child_modules(self).get("flow")
        own = name == "flow" or name in self.__dict__ or hasattr(type(self), name)
        if own or name.startswith("_") or not hasattr(layer, name):
            super().__setattr__(name, value)
        else:
            setattr(layer, name, value)


def _remove_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the state_dict of a wrapper the keys of the layer."""
    inner = f"{prefix}flow."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)
    # A model without the wrapper looks for the version of the layer under the layer's name.
    versions = module_versions(state)
    for key in [key for key in versions if f"{key}.".startswith(inner)]:
        versions[f"{prefix}{f'{key}.'.removeprefix(inner)}"[:-1]] = versions[key]


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
    """Give a state_dict of the layer the keys of the wrapper, unless it has them already."""
    # The hook that runs after loading needs the prefix and the list of error messages, and
    # torch does not pass them to it.
    module.__dict__["_loading"] = prefix, arguments[-1]
    inner = f"{prefix}flow."
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(inner)]:
        state[inner + key.removeprefix(prefix)] = state.pop(key)


def _remove_prefix_in_messages(module: nn.Module, keys: Any) -> None:
    """Name missing, unexpected and misshapen entries by the keys of the layer."""
    prefix, messages = module.__dict__.pop("_loading")
    inner = f"{prefix}flow."
    for names in (keys.missing_keys, keys.unexpected_keys):
        names[:] = [re.sub(f"^{re.escape(inner)}", prefix, name) for name in names]
    messages[:] = [re.sub(rf"\b{re.escape(inner)}", prefix, text) for text in messages]
