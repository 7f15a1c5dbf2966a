"""Detector configs as data, and the name of the detector that a config describes.

They are read without MMEngine, whose import takes longer than making a page. At the mini scale the
backbone `r50` is a half-width ResNet-18, so pages take the name from the config.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pcb.errors import UserError
from pcb.files import located

Settings = dict[str, Any]  # dotted path -> value

# Steps of a pipeline that yield the same as others: window masks are a faster form of the same
# annotations, and the sizes of a resize are compared as its settings.
SAME_STEP = {"LoadWindowMasks": "LoadAnnotations", "RandomChoiceResize": "Resize"}
NO_EFFECT = {"SaveFeatureCacheHook"}  # hooks that change no result


def read_detector_config(path: str | Path) -> dict:
    """Read an MMEngine config in Python, with what it inherits by `_base_`, without MMEngine.

    Mappings are merged key by key; `_delete_=True` replaces the inherited mapping. Bases may be
    named `package::path`. Bases in other formats and `{{_base_.name}}` are not supported.

    Args:
        path: The file, absolute, or relative to the working directory or the repository.

    Returns:
        The same as `mmengine.Config.fromfile(path).to_dict()`, without the key `_scope_`.

    Raises:
        UserError: The file does not exist or cannot be executed.
    """
    path = located(path).absolute()
    names: dict[str, Any] = {"__file__": str(path)}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    except OSError as error:
        raise UserError(
            f"{path}: no such detector config", "correct `backbones` in the scale's YAML file"
        ) from error
    except Exception as error:
        raise UserError(
            f"{path} is not a valid detector config: {error}", "correct that file"
        ) from error
    bases = names.pop("_base_", [])
    inherited: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        inherited |= read_detector_config(base_path(base, path.parent))
    return merge({k: v for k, v in names.items() if not k.startswith("__")}, inherited)


def base_path(base: str, folder: Path) -> Path:
    """The path of an inherited config: relative to the folder, or in `package::path` to a package.

    Source: mmengine.config.Config, `_get_cfg_path`.
    """
    package, external, path = base.rpartition("::")
    spec = find_spec(package) if external else None
    if spec is None or spec.submodule_search_locations is None:
        return folder / base
    return Path(spec.submodule_search_locations[0]) / ".mim/configs" / path


def merge(own: dict, inherited: dict) -> dict:
    """Lay a config over the one that it inherits from, mappings key by key."""
    out = dict(inherited)
    for key, value in own.items():
        if isinstance(value, dict) and key in out:
            replaces = value.get("_delete_", False)
            value = {k: v for k, v in value.items() if k != "_delete_"}
            out[key] = merge(value, {} if replaces else out[key])
        else:
            out[key] = value
    return out


def read_settings(config: str | Path) -> Settings:
    """The settings of a detector config by dotted path."""
    return flatten(read_detector_config(config))


def flatten(value: dict, prefix: str = "") -> Settings:
    """Settings of nested mappings by dotted path; of a pipeline by step, its order as `steps`."""
    out: Settings = {}
    for key, entry in value.items():
        path = f"{prefix}{key}"
        if isinstance(entry, dict):
            out |= flatten(entry, f"{path}.")
        elif isinstance(entry, list) and entry and isinstance(entry[0], dict):
            out |= flatten_steps(entry, path)
        else:
            out[path] = entry
    return out


def flatten_steps(steps: list[dict], path: str) -> Settings:
    """Settings of a pipeline or of hooks by the type of the step; a second of a type is `type2`."""
    out: Settings = {}
    names: list[str] = []
    for step in steps:
        if (step_type := step.get("type", "entry")) in NO_EFFECT:
            continue
        name = SAME_STEP.get(step_type, step_type)
        names.append(name)
        number = names.count(name)
        options = {key: value for key, value in step.items() if key != "type"}
        out |= flatten(options, f"{path}.{name}{number if number > 1 else ''}.")
    return {f"{path}.steps": names, **out} if names else out


def detector_title(config: str | Path, frozen: bool = True) -> str:
    """The name of the detector that a config describes: backbone, neck and image size.

    Args:
        config: The path of the config, absolute or relative to the repository.
        frozen: Whether to add the parts that do not learn, for a model type with frozen parts.

    Returns:
        For instance `ResNet-50-FPN, 1333x800`, or
        `half-width ResNet-18-FPN, 96 px (backbone, FPN and RPN frozen)`.
    """
    settings = read_settings(config)
    title = backbone(settings)
    if any(key.startswith("test_pipeline.Resize.scale") for key in settings):
        title += f", {image_size(settings, 'test')}"
    return f"{title} ({frozen_parts(settings)} frozen)" if frozen and is_frozen(settings) else title


def backbone(settings: Settings) -> str:
    """Width, type, depth and neck of a detector, for instance `half-width ResNet-18-FPN`."""
    channels = settings.get("model.backbone.base_channels", 64)
    width = {64: "", 32: "half-width "}.get(channels, f"{channels}-channel ")
    depth = settings.get("model.backbone.depth")
    name = settings["model.backbone.type"] + (f"-{depth}" if depth else "")
    return f"{width}{name}" + ("-FPN" if settings.get("model.neck.type") == "FPN" else "")


def image_size(settings: Settings, split: str) -> str:
    """The size to which a pipeline resizes: `96 px`, `1333x800`, `1333x640 to 1333x800`."""
    resize = f"{split}_pipeline.Resize"
    scales = settings.get(f"{resize}.scales") or [settings[f"{resize}.scale"]]
    names = [f"{w} px" if w == h else f"{w}x{h}" for w, h in (scales[0], scales[-1])]
    return " to ".join(dict.fromkeys(names))


def is_frozen(settings: Settings) -> bool:
    """Whether a detector trains its RoI heads alone."""
    return settings["model.type"].startswith("Frozen")


def frozen_parts(settings: Settings) -> str:
    """The parts of a detector that do not learn."""
    stages = settings.get("model.backbone.frozen_stages", -1)
    if is_frozen(settings):
        return "backbone, FPN and RPN"
    return f"the backbone's stem and {stages} of its 4 stages" if stages >= 0 else "none"
