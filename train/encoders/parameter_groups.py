"""Parameter groups of the encoders for AdamW: learning rates and weight decay.

A new head needs a larger rate than a pretrained backbone. Within the backbone, layer-wise decay (ELECTRA, Clark et al.
2020, 2003.10555; BEiT, Bao et al. 2021, 2106.08254) multiplies the rate by a factor for each layer towards the input.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from train.recipes.recipe import Recipe


def parameter_groups(encoders: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW groups: backbone and head each with its learning rate; vectors (norms, biases) without weight decay.

    With `recipe.image.layer_decay` d the backbone's groups are one pair per layer: rate x d ** (layers above it), so
    that the topmost layer learns at `encoder_learning_rate`.

    Raises:
        ValueError: layer_decay on a backbone without a list of layers.
    """
    groups = []
    named = [(name, value) for name, value in encoders.named_parameters() if value.requires_grad]
    above = _layers_above(encoders, recipe)
    for prefix, rate in (
        ("vision.", recipe.image.encoder_learning_rate),
        ("image_head.", recipe.image.projection_learning_rate),
    ):
        mine = [(name, value) for name, value in named if name.startswith(prefix)]
        for depth in sorted({above.get(name, 0) for name, _ in mine}):
            layer = [value for name, value in mine if above.get(name, 0) == depth]
            groups += _decayed_and_not(
                layer, rate * (recipe.image.layer_decay or 1.0) ** depth, recipe.image.weight_decay
            )
    return groups


def _decayed_and_not(values: Sequence[Tensor], rate: float, weight_decay: float) -> list[dict[str, Any]]:
    groups = []
    for decay, wanted in ((weight_decay, True), (0.0, False)):
        chosen = [value for value in values if (value.ndim > 1) == wanted]
        if chosen:
            groups.append({"params": chosen, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    return groups


def _layers_above(encoders: nn.Module, recipe: Recipe) -> dict[str, int]:
    """Number of layers above that of each backbone parameter, by name; empty without layer_decay."""
    if recipe.image.layer_decay is None:
        return {}
    vision: Any = encoders.get_submodule("vision")
    order = layer_order(vision)
    top = max(order.values())
    return {f"vision.{name}": top - place for name, place in order.items()}


def layer_order(vision: nn.Module) -> dict[str, int]:
    """Depth by parameter name: 0 before the first layer, 1 to n in the n layers, n + 1 after them.

    The layers are the outermost list of modules with more than one entry: stages of a convolutional network, layers of
    a transformer.

    Raises:
        ValueError: there is no such list.
    """
    lists = [name for name, module in vision.named_modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    if not lists:
        raise ValueError(
            f"recipe.image.layer_decay needs a backbone with a list of layers, which {type(vision).__name__} does not "
            "have; use null, one rate for the whole backbone"
        )
    layers: Any = vision.get_submodule(lists[0])
    order, behind = {}, 0
    for name, _ in vision.named_parameters():
        if name.startswith(f"{lists[0]}."):
            behind = len(layers) + 1
            order[name] = int(name.removeprefix(f"{lists[0]}.").split(".")[0]) + 1
        else:
            order[name] = behind
    return order
