"""Low-rank adapters (LoRA) on both encoders through peft, and their export.

An adapter is a few per cent of an encoder to train, store and send, and is merged into the plain weights afterwards (Hu
et al. 2021, 2106.09685: W + alpha / rank x B A, B starting at 0). Adapters are on layers behind the frozen stages, so
cached features stay valid.

Adapters of the image encoder are trained in the image stage, those of the text encoder in the text stage. No adapter
folder is published if more than adapters has changed: the image encoder trained without adapters, or by distillation,
or layers of the text encoder fine-tuned.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modeling_oclear import publish
from runtime.files import atomic_folder
from train.recipes.recipe import Recipe

ATTENTION = ("q_proj", "v_proj", "query", "value")  # the layers that Hu et al. adapt, as transformers names them
ADAPTER = "default"
SETTINGS: dict[str, Any] = {"lora_dropout": 0.0, "bias": "none"}
BASE = "../base"  # relative to the adapter's folder; not a repository name, so no code of others is fetched


def adapter_layers(vision: nn.Module, recipe: Recipe) -> list[str]:
    """Names of the layers behind the frozen stages that get adapters.

    Raises:
        ValueError: `lora_targets` names none, or a convolution over more than one patch; or it is None and the
            backbone has neither query and value projections nor 1x1 convolutions.
    """
    frozen: tuple[str, ...] = ()
    if recipe.model.frozen_stages:
        frozen = ("stem.", *(f"stages.{stage}." for stage in range(recipe.model.frozen_stages)))
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in vision.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith(frozen)
    }
    if recipe.image.lora.targets is not None:
        return _named(layers, recipe.image.lora.targets, type(vision).__name__)
    found = [name for name in layers if name.rpartition(".")[2] in ATTENTION]
    found = found or [name for name, module in layers.items() if _is_pointwise(module)]
    if not found:
        raise ValueError(
            f"recipe.image.lora.rank is {recipe.image.lora.rank}, but the trained part of {type(vision).__name__} "
            "has neither query and value projections nor 1x1 convolutions; name its layers in lora_targets"
        )
    return found


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride, module.groups) == ((1, 1), (1, 1), 1)


def _named(layers: dict[str, nn.Module], targets: tuple[str, ...], model: str) -> list[str]:
    found = []
    for target in targets:
        names = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not names:
            raise ValueError(
                f"recipe.image.lora.targets has {target!r}, which is the end of no trained layer's name in {model}; "
                f"such layers are {', '.join(list(layers)[:4])}, ..."
            )
        found += names
    wide = [name for name in found if isinstance(layers[name], nn.Conv2d) and not _is_pointwise(layers[name])]
    if wide:
        raise ValueError(
            f"recipe.image.lora.targets takes in {wide[0]}, a convolution over more than one patch or by groups; name "
            "linear layers and 1x1 convolutions"
        )
    return list(dict.fromkeys(found))


def text_layers(text: nn.Module) -> list[str]:
    """Names of the query and value projections of a text encoder.

    Raises:
        ValueError: it has none.
    """
    found = [
        name
        for name, module in text.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in ATTENTION
    ]
    if not found:
        raise ValueError(
            f"the recipe adapts the text encoder, but {type(text).__name__} has no layer called "
            f"{', '.join(ATTENTION)}; set text.lora.rank to 0 and text.tune_layers to false, or take another encoder"
        )
    return found


def add_adapters(vision: nn.Module, recipe: Recipe, *, seed: int) -> Any:
    """Add adapters to the backbone, in place, and freeze its other parameters.

    The output of the model does not change, as B starts at 0; A is drawn from the seed, equal on every rank.

    Returns:
        peft's `LoraModel` around the backbone, whose `merge_and_unload` merges the adapters.

    Raises:
        ValueError: see `adapter_layers`.
    """
    return _add(vision, adapter_layers(vision, recipe), recipe.image.lora.rank, recipe, seed=seed)


def add_text_adapters(text: nn.Module, recipe: Recipe, *, seed: int) -> Any:
    """Add adapters to the text encoder; see `add_adapters`.

    Raises:
        ValueError: see `text_layers`.
    """
    return _add(text, text_layers(text), recipe.text.lora.rank, recipe, seed=seed)


def _add(encoder: nn.Module, layers: list[str], rank: int, recipe: Recipe, *, seed: int) -> Any:
    from peft import LoraConfig, LoraModel  # takes seconds to import

    config = LoraConfig(target_modules=layers, r=rank, lora_alpha=_alpha(recipe, rank), **SETTINGS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoraModel(encoder, config, ADAPTER)


def _alpha(recipe: Recipe, rank: int) -> Any:  # peft declares int, and accepts any number
    return rank if recipe.image.lora.alpha is None else recipe.image.lora.alpha


def load_and_merge(vision: nn.Module, weights: dict[str, Tensor], recipe: Recipe, *, seed: int) -> None:
    """Load the state of a backbone with adapters into a plain one, merging them into its weights."""
    tuner = add_adapters(vision, recipe, seed=seed)
    vision.load_state_dict(weights)
    tuner.merge_and_unload()
    vision.requires_grad_(True)


def trained_share(encoders: nn.Module) -> str:
    """One line: how many parameters of image encoder and image head are trained."""
    trained, total = trained_and_all(encoders.get_submodule("vision"))
    head, _ = trained_and_all(encoders.get_submodule("image_head"))
    return (
        f"adapters: {trained:,} of {total:,} parameters of the image encoder are trained ({trained / total:.1%}); the "
        f"image head, which starts from nothing, is trained whole ({head:,})"
    )


def trained_and_all(module: nn.Module) -> tuple[int, int]:
    """Numbers of trained parameters and of all parameters."""
    sizes = [(value.numel(), value.requires_grad) for value in module.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def is_adapter_alone(recipe: Recipe) -> bool:
    """Whether a run of the recipe changes only adapters, image head and fusion."""
    image_is_fixed = recipe.image.lora.rank > 0 or recipe.model.frozen_stages is None
    has_adapters = recipe.image.lora.rank > 0 or recipe.text.lora.rank > 0
    return has_adapters and image_is_fixed and not recipe.text.tune_layers


def export_adapter(
    run: Path, *, base: Any, model: Any, processor: Any, weights: dict[str, Tensor], recipe: Recipe
) -> None:
    """Write `run/base`, the initial model, and `run/adapter`, the trained adapters, image head and fusion.

    The adapter refers to its base as `BASE`, so the run folder may be moved. peft resolves it from the current
    directory, not from the adapter: `AutoPeftModelForFeatureExtraction.from_pretrained(".")` within `run/adapter`, or
    anywhere `PeftModel.from_pretrained(AutoModel.from_pretrained("run/base"), "run/adapter")`. hub_cards sets the
    base's Hub id when it pushes the two, and writes their cards, so peft's own card is removed. Several adapters can
    share one base.

    Args:
        base: result of `build_model`. model: the trained model with merged adapters.
        weights: state of the `EncoderPair`, adapters not merged; those of the text encoder begin with "text.".

    Raises:
        ValueError: something else than adapters, image head and fusion differs between base and model.
    """
    from peft import LoraConfig, get_peft_model

    modules = [name for name in ("image_head", "fusion") if getattr(base, name) is not None]
    layers = _published_layers(base, recipe)
    _check_rest(base, model, [*modules, *sorted({name.partition(".")[0] for name in layers})])
    with atomic_folder(run / "base") as folder:
        publish(base, processor, folder)
    config = LoraConfig(
        target_modules=list(layers),
        r=max(layers.values()),
        rank_pattern=layers,
        alpha_pattern={name: _alpha(recipe, rank) for name, rank in layers.items()},
        task_type="FEATURE_EXTRACTION",
        modules_to_save=modules,
        **SETTINGS,
    )
    with warnings.catch_warnings():
        # peft 0.21 reads this attribute of transformers 5.23 under its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        adapted = get_peft_model(base, config)
    inner: Any = adapted.get_base_model()
    for encoder, prefix in ((inner.vision_model, "vision."), (inner.text_model, "text.")):
        lora = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        lora = {name: value for name, value in lora.items() if ".lora_" in name}
        assert not lora or not encoder.load_state_dict(lora, strict=False).unexpected_keys
    for name in modules:
        getattr(inner, name).modules_to_save[ADAPTER].load_state_dict(getattr(model, name).state_dict())
    adapted.peft_config[ADAPTER].base_model_name_or_path = BASE
    with atomic_folder(run / "adapter") as folder:
        _save_adapter(adapted, folder)


def _save_adapter(adapted: Any, folder: Path) -> None:
    # "auto" would read the base's config, here or from the Hub, to find out whether embeddings were resized.
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()


def _published_layers(base: Any, recipe: Recipe) -> dict[str, int]:
    """Rank of the adapter on each layer, by its name in the whole model."""
    layers: dict[str, int] = {}
    if recipe.image.lora.rank:
        found = adapter_layers(base.vision_model, recipe)
        layers |= {f"vision_model.{name}": recipe.image.lora.rank for name in found}
    if recipe.text.lora.rank:
        layers |= {f"text_model.{name}": recipe.text.lora.rank for name in text_layers(base.text_model)}
    return layers


def _check_rest(base: Any, model: Any, modules: list[str]) -> None:
    ours, kept = model.state_dict(), tuple(f"{name}." for name in modules)
    for name, value in base.state_dict().items():
        if not name.startswith(kept) and not torch.equal(value, ours[name]):
            raise ValueError(f"{name} was trained, but adapters publish {', '.join(modules)} and adapters alone")
