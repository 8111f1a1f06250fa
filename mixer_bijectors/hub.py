"""Models that a folder or the Hugging Face Hub stores, with their arguments and a model card.

Needs the extra `hub`.
"""

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from . import models, univariate

try:
    from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
    from safetensors.torch import load_file, save_file
except ImportError as error:
    raise ImportError(
        "mixer_bijectors.hub needs huggingface_hub and safetensors: pip install "
        '"mixer_bijectors[hub]"'
    ) from error

__all__ = ["Jet", "MixerFlow", "TarFlow"]

_WEIGHTS = "model.safetensors"
_CARD = """---
{{ card_data }}
---

# {{ name }} for images of shape {{ image_shape }}

A normalizing flow with {{ parameters }} parameters, built and trained with mixer_bijectors
([paper]({{ paper_url }})). Images are floating point tensors in [-1, 1), see
`mixer_bijectors.images.dequantize`.

```python
from {{ module }} import {{ name }}

model = {{ name }}.from_pretrained("{{ repo_id | default('THIS REPOSITORY', true) }}")
images, log_prob = model.sample(4{{ labels }})
```

{{ description | default("Its training has not been described.", true) }}

Its arguments:

```json
{{ arguments }}
```
"""


class _OnTheHub(PyTorchModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model of images.

    The arguments of the model are kept as JSON, a univariate bijection by its name and its own
    arguments. Weights keep their dtype.
    """

    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Note the arguments of the constructor, which may be that of a subclass."""
        model = super().__new__(cls, *args, **options)
        given = inspect.signature(cls.__init__).bind_partial(model, *args, **options).arguments
        del given["self"]
        model.arguments = {
            key: _encode(cls.__name__, key, value) for key, value in given.items()
        }
        return model

    def save_pretrained(
        self, save_directory: str | Path, *, config: Any = None, **options: Any
    ) -> str | None:
        """Write weights, arguments and a model card into a folder.

        Args:
            save_directory: the folder.
            config: what to write in place of the arguments of the model.
            options: those of `huggingface_hub.PyTorchModelHubMixin.save_pretrained`, such as
                `model_card_kwargs`, of which `description` says how the model was trained.
        """
        return super().save_pretrained(
            save_directory, config=config or self.arguments, **options
        )

    def generate_model_card(self, *args: Any, **options: Any) -> Any:
        """The model card: how to load and sample the model, and its arguments."""
        model: Any = self
        about = {
            "module": type(self).__module__,
            "name": type(self).__name__,
            "image_shape": list(model.image_shape),
            "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
            "labels": ", labels=torch.arange(4)" if model.num_classes else "",
            "arguments": json.dumps(self.arguments, indent=2),
        }
        return super().generate_model_card(*args, **about | options)

    def _save_pretrained(self, save_directory: Path) -> None:
        model: Any = self
        state = {key: value.clone() for key, value in model.state_dict().items()}
        save_file(state, save_directory / _WEIGHTS)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str | torch.device = "cpu",
        **arguments: Any,
    ) -> Any:
        if Path(model_id).is_dir():
            path = str(Path(model_id) / _WEIGHTS)
        else:
            path = hf_hub_download(
                model_id,
                _WEIGHTS,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        state = load_file(path)
        model: Any = cls(**{key: _decode(value) for key, value in arguments.items()})
        if any(value.dtype == torch.float64 for value in state.values()):
            model.double()
        model.load_state_dict(state)
        return model.to(map_location).eval()


def _encode(model: str, name: str, value: Any) -> Any:
    """An argument as JSON can hold it."""
    kind = type(value).__name__
    if kind in univariate.__all__:
        options = {f.name: _encode(model, name, getattr(value, f.name)) for f in fields(value)}
        return {"univariate": kind, **options}
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise TypeError(
            f"{model}: the argument {name} is a {kind}, which a file of arguments cannot hold; "
            f"write a subclass of hub.{model} whose constructor sets it"
        ) from error


def _decode(value: Any) -> Any:
    """The argument of its JSON."""
    if isinstance(value, dict) and value.get("univariate") in univariate.__all__:
        options = {key: _decode(option) for key, option in value.items()}
        return getattr(univariate, options.pop("univariate"))(**options)
    return value


class MixerFlow(
    _OnTheHub,
    models.MixerFlow,
    model_card_template=_CARD,
    library_name="mixer_bijectors",
    paper_url="https://arxiv.org/abs/2310.16777",
):
    """`mixer_bijectors.MixerFlow` with `save_pretrained`, `from_pretrained`, `push_to_hub`.

    It takes the arguments of `mixer_bijectors.MixerFlow`, all but functions and modules, which
    a file of arguments cannot hold. A subclass may set these in its constructor.

    Raises:
        TypeError: an argument that JSON cannot hold.

    Example:
        >>> from mixer_bijectors.hub import MixerFlow
        >>> model = MixerFlow((3, 16, 16), 4, num_layers=2, hidden_features=16)
        >>> model.arguments["num_layers"]
        2
        >>> model.save_pretrained("flowers")  # doctest: +SKIP
        >>> model.push_to_hub("user/flowers")  # doctest: +SKIP
        >>> model = MixerFlow.from_pretrained("flowers")  # doctest: +SKIP
    """


class TarFlow(
    _OnTheHub,
    models.TarFlow,
    model_card_template=_CARD,
    library_name="mixer_bijectors",
    paper_url="https://arxiv.org/abs/2412.06329",
):
    """`mixer_bijectors.TarFlow` with `save_pretrained`, `from_pretrained`, `push_to_hub`."""


class Jet(
    _OnTheHub,
    models.Jet,
    model_card_template=_CARD,
    library_name="mixer_bijectors",
    paper_url="https://arxiv.org/abs/2412.15129",
):
    """`mixer_bijectors.Jet` with `save_pretrained`, `from_pretrained`, `push_to_hub`."""
