"""Transform chains: declared once in YAML as knobs and named steps, used by every bundle and by other projects."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import pydoc
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigComponent, ConfigParser
from monai.transforms import Compose, InvertibleTransform, MapTransform, RandomizableTrait
from monai.transforms.compose import execute_compose
from monai.transforms.utils import allow_missing_keys_mode
from monai.utils import ensure_tuple
from torch.utils.data import get_worker_info

from monai_pipelines import __version__
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.errors import ChainMismatchError, ScanError, error_text, root_cause
from monai_pipelines.transforms.keyed import EachKeyd


class Chain(MapTransform, InvertibleTransform):
    """A flat sequence of named transforms that can describe itself.

    Called with a dictionary it works as any MONAI dictionary transform; called with anything else (a path, an array,
    a tensor) it transforms that value and returns the result.

    MONAI takes every `Compose` in a list of transforms for random, and caches nothing from there on. A chain of fixed
    steps is therefore no `Compose`: caching datasets cache all of it, in a list, in a `Compose` or alone. With random
    steps, ``Chain(...)`` returns a `RandomChain`.

    Args:
        steps: name -> transform, in order.
        description: plain data; see `describe`.
        key: the dictionary key of a bare input.

    Example:
        >>> chain = load_chain("image2d", size=(64, 64))
        >>> train = chain.until("normalize") + load_chain("augment_image2d") + chain.since("normalize")
        >>> train.step_names
        ('load', 'measure', 'resize', 'spatial', 'color', 'stain', 'normalize')
    """

    transforms: Sequence[Callable]

    def __new__(cls, steps: Mapping[str, Callable] | None = None, *args: Any, **kwargs: Any) -> Chain:
        random = any(isinstance(step, RandomizableTrait) for step in (steps or {}).values())
        return super().__new__(RandomChain if random else cls)

    def __init__(self, steps: Mapping[str, Callable], description: dict[str, Any], key: str = "image") -> None:
        MapTransform.__init__(self, key)
        self.transforms = tuple(steps.values())
        self.step_names = tuple(steps)
        self.key = key
        self._description = description

    def __repr__(self) -> str:
        """Name, knobs and steps."""
        name, knobs = self._description.get("name", ""), self._description.get("knobs", {})
        width = max(map(len, self.step_names), default=0)
        lines = [f"{step:{width}}  {type(transform).__name__}" for step, transform in self.steps.items()]
        shown = ", ".join(f"{knob}={value!r}" for knob, value in knobs.items())
        return "\n  ".join([f"{type(self).__name__} {name}", *textwrap.wrap(shown, 100), *lines])

    def __add__(self, other: Chain) -> Chain:
        """This chain followed by another, such as an augmentation, as one flat chain.

        Names of steps and knobs that both have get a number in the second, except knobs of the same value. Steps are
        shared, not copied: seed the sum, not its parts.

        Raises:
            ValueError: chains of different keys.
        """
        if not isinstance(other, Chain):
            return NotImplemented
        mine, its = self._description, other._description
        if self.key != other.key:
            raise ValueError(
                f"chains {mine['name']} + {its['name']}: wanted one key, got {self.key!r} and {other.key!r}; load both "
                "with the same keys="
            )
        names = list(self.step_names)
        for name in other.step_names:
            names.append(_free(name, names))
        new = names[len(self.step_names) :]
        knobs = dict(mine["knobs"])
        for knob, value in its["knobs"].items():
            if knob not in knobs or knobs[knob] != value:
                knobs[_free(knob, knobs)] = value
        description = {
            "name": f"{mine['name']} + {its['name']}",
            "knobs": knobs,
            "steps": mine["steps"] | dict(zip(new, its["steps"].values(), strict=True)),
            "versions": mine["versions"] | its["versions"],
        }
        return Chain(dict(zip(names, (*self.transforms, *other.transforms), strict=True)), description, self.key)

    @property
    def steps(self) -> dict[str, Callable]:
        """The transforms by name, in order."""
        return dict(zip(self.step_names, self.transforms, strict=True))

    def describe(self) -> dict[str, Any]:
        """The chain as plain data: name, knobs, every argument of every step, versions.

        Returns:
            ``{"name", "knobs", "steps": {step: {"_target_", argument: value}}, "versions"}``, safe for JSON and YAML.
        """
        return json.loads(json.dumps(self._description))

    def until(self, step: str) -> Chain:
        """The steps before ``step`` as a chain: what is done once and cached."""
        return self._part(0, self._index(step))

    def since(self, step: str) -> Chain:
        """``step`` and all after it as a chain: what is done to each batch."""
        return self._part(self._index(step), len(self.step_names))

    def then(self, name: str, step: Callable, described: Mapping[str, Any]) -> Chain:
        """This chain followed by one more step, such as the frozen network that turns its output into features.

        Args:
            name: of the step.
            step: applied to the value of `key`.
            described: the step as plain data, part of `describe` and `fingerprint`.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.step_names:
            raise ValueError(f"chain {self._description['name']}: step {name!r} exists already; choose another name")
        steps = {**self._description["steps"], name: _plain(described)}
        return Chain({**self.steps, name: EachKeyd(self.key, step)}, {**self._description, "steps": steps}, self.key)

    def _index(self, step: str) -> int:
        _check_name(self._description["name"], "step", step, self.step_names)
        return self.step_names.index(step)

    def _part(self, start: int, stop: int) -> Chain:
        names = self.step_names[start:stop]
        description = {**self._description, "steps": {n: self._description["steps"][n] for n in names}}
        return Chain({name: self.steps[name] for name in names}, description, self.key)

    def fingerprint(self) -> str:
        """16 hex digits that change whenever a step, an argument or a library version that matters changes."""
        content = {"steps": list(self._description["steps"].items()), "versions": self._description["versions"]}
        plain = json.loads(json.dumps(content), parse_int=float)  # 10 and 10.0 are the same number
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    def check_same(self, description: Mapping[str, Any], subject: str = "checkpoint") -> list[str]:
        """Compare with the description of the chain that another run (a checkpoint, a cache) used.

        Args:
            description: what `describe` returned then.
            subject: where it comes from, for the message.

        Returns:
            one line for each library version that differs; the steps agree, so results stay comparable.

        Raises:
            ChainMismatchError: steps or their arguments differ; the message lists each.
        """
        now, then = self._description["steps"], description["steps"]
        differences = [f"step {s!r} is missing here" for s in then if s not in now]
        differences += [f"step {s!r} is new here" for s in now if s not in then]
        if not differences and list(now) != list(then):
            differences.append(f"order of steps: {list(then)} there, {list(now)} here")
        for step in (s for s in now if s in then):
            for arg in sorted(now[step].keys() | then[step].keys()):
                old, new = then[step].get(arg), now[step].get(arg)
                if old != new:
                    differences.append(f"{step}.{arg}: {old!r} there, {new!r} here")
        if differences:
            raise ChainMismatchError(subject, differences)
        old_versions, versions = description["versions"], self._description["versions"]
        return [f"{k} {old_versions.get(k)} then, {v} now" for k, v in versions.items() if old_versions.get(k) != v]

    def __call__(self, input_: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        try:
            if isinstance(input_, (Mapping, list)):
                return self._run(input_, *args, **kwargs)
            return self._run({self.key: input_}, *args, **kwargs)[self.key]
        except RuntimeError as error:  # MONAI wraps the errors of steps
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, (ScanError, OSError)):
                cause = cause.__cause__
            if cause is None:
                raise
        raise cause  # not in the handler, where MONAI's error would become its context: a cycle

    def _run(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return execute_compose(data, self.transforms, *args, **kwargs)

    def inverse(self, data: Any) -> Any:
        """Masks, maps and boxes on the grid of the chain's result, brought back to that of the file.

        Args:
            data: an item, or what is at the chain's key alone: (C, *size), with the trace of the image
                (``MetaTensor(mask).copy_meta_from(image)``). Integers and booleans go by the nearest neighbor,
                floating-point values are interpolated. Boxes (``boxes``, with the item's ``box_affine``) become those
                of the source, see `monai_pipelines.transforms.boxes`.

        Returns:
            the same on the grid of the file, 0 where the chain cut off; unchanged if no step moves pixels.

        Raises:
            ValueError: no trace of this chain, another size, a random step that moves pixels, tiles of a slide; an
                item without anything to bring back.

        Example:
            >>> chain = load_chain("image2d", size=(8, 8))
            >>> image = chain(np.zeros((3, 20, 30), np.uint8))
            >>> chain.inverse(image > 0).shape  # has the image's trace, as a network's output often does
            torch.Size([3, 20, 30])
        """
        if isinstance(data, list):
            return [self.inverse(item) for item in data]
        if not isinstance(data, Mapping):
            return self.inverse({self.key: data})[self.key]
        steps: list[Any] = [step for step in reversed(self.transforms) if isinstance(step, InvertibleTransform)]
        out = dict(data)
        for step in steps:
            with allow_missing_keys_mode(step):
                out = step.inverse(out)
        if steps and all(out.get(key) is value for key, value in data.items()):
            raise ValueError(
                f"chain {self._description.get('name', '')}: nothing to bring back among {', '.join(map(str, data))}; "
                f"the image, or a map on its grid, is at {self.key!r}, boxes are at 'boxes'"
            )
        return out


class RandomChain(Chain, Compose):  # type: ignore[misc]
    """A `Chain` with random steps: a `monai.transforms.Compose`, of which caching datasets cache the fixed beginning.

    In the workers of any `torch.utils.data.DataLoader` each worker and epoch draws differently, by the seed of the
    loader (``torch.manual_seed`` or its ``generator``) and, if given, that of `set_random_state`. In the main process
    `set_random_state` and MONAI's ``set_determinism`` count, as for all of MONAI's transforms.
    """

    def __init__(self, steps: Mapping[str, Callable], description: dict[str, Any], key: str = "image") -> None:
        Chain.__init__(self, steps, description, key)
        Compose.__init__(self, self.transforms)
        self._seeded, self._worker_seed = False, None  # type: bool, int | None

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandomChain:
        """Seed all random steps, each differently."""
        Compose.set_random_state(self, seed, state)
        worker = get_worker_info()
        self._seeded, self._worker_seed = True, None if worker is None else worker.seed
        return self

    def _run(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        worker = get_worker_info()
        if worker is not None and worker.seed != self._worker_seed:  # the first call in this worker
            number = int(self.R.randint(2**32, dtype=np.uint32)) if self._seeded else next(_in_this_worker)
            self.set_random_state(int(np.random.SeedSequence([worker.seed, number]).generate_state(1)[0]))
        return Compose.__call__(self, data, *args, **kwargs)


_in_this_worker = count()  # chains without a seed, so that two equal ones draw differently


_OF_EACH_AXIS = ("size", "spacing_mm")  # knobs that may be one number


def load_chain(name: str | Path, steps: Mapping[str, Any] | None = None, **knobs: Any) -> Chain:
    """Load a declared transform chain, with some of its knobs or steps changed.

    Args:
        name: a chain of this package (``python -m monai_pipelines show`` lists them) or the path of a YAML file.
        steps: changes by step name: ``None`` or ``False`` switches a step off, a mapping changes its arguments.
        knobs: values for the knobs at the top of the chain's file. ``keys=["image", "mask"]`` is short for the image's
            ``keys`` and the ``mask_keys`` of masks that follow it.

    Returns:
        the chain, flat and picklable.

    Raises:
        FileNotFoundError: no such chain.
        KeyError: an unknown knob or step; names the nearest one.
        ValueError: a value that a step cannot take.

    Example:
        >>> chain = load_chain("lung_ct", size=(96, 96, 96), steps={"window": {"window_hu": "mediastinum"}})
        >>> chain.describe()["knobs"]["size"]
        [96, 96, 96]
    """
    path = chain_file(name)
    config: dict[str, Any] = dict(ConfigParser.load_config_file(path))
    declared_steps: dict[str, dict[str, Any]] = dict(config.pop("steps"))
    for knob, value in knobs.items():
        _check_name(path.stem, "knob", knob, config)
        if knob in _OF_EACH_AXIS and isinstance(config[knob], list) and isinstance(value, int | float):
            value = [value] * len(config[knob])
        config[knob] = _plain(value)
    for step, change in (steps or {}).items():
        _check_name(path.stem, "step", step, declared_steps)
        if change is None or change is False:
            del declared_steps[step]
        elif isinstance(change, Mapping):
            declared_steps[step] = {**declared_steps[step], **_plain(change)}
        else:
            raise TypeError(
                f"chain {path.stem}: step {step!r} must be None (off) or a mapping of arguments, got {change!r}"
            )
    if "mask_keys" in config:
        config["keys"], *masks = ensure_tuple(config["keys"])
        config["mask_keys"] = [*masks, *ensure_tuple(config["mask_keys"] or ())] or None
    parser = ConfigParser({**config, "steps": declared_steps})
    for step in list(declared_steps):
        if parser.get_parsed_content(f"steps::{step}::_disabled_", default=False):
            del declared_steps[step]
    described = {}
    for step, declared in declared_steps.items():
        component = ConfigComponent(declared, locator=parser.locator)  # knows the short names of MONAI's transforms
        target = pydoc.locate(str(component.resolve_module_name()))
        if not callable(target):
            raise KeyError(f"chain {path.stem}: step {step!r} names {declared['_target_']!r}, which does not exist")
        arguments = {a: parser.get_parsed_content(f"steps::{step}::{a}") for a in declared if not a.startswith("_")}
        parameters = inspect.signature(target).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            for argument in arguments:
                _check_name(path.stem, f"argument of step {step!r}", argument, parameters)
        defaults = {a: p.default for a, p in parameters.items() if p.default is not inspect.Parameter.empty}
        described[step] = {"_target_": declared["_target_"], **_plain({**defaults, **arguments})}
    description = {
        "name": path.stem,
        "knobs": _plain({knob: parser.get_parsed_content(knob) for knob in config}),
        "steps": described,
        "versions": {"monai_pipelines": __version__, "monai": version("monai")},
    }
    chain_steps = {}
    for step in declared_steps:
        try:
            chain_steps[step] = parser.get_parsed_content(f"steps::{step}")
        except RuntimeError as error:  # MONAI's, around it
            cause = root_cause(error)
            if not isinstance(cause, ValueError | TypeError | KeyError):
                raise
            raise ValueError(f"chain {path.stem}, step {step!r}: {error_text(cause)}") from cause
    return Chain(chain_steps, description, ensure_tuple(config.get("keys", "image"))[0])


def chain_file(name: str | Path) -> Path:
    """The YAML file of a chain, by name or path.

    Raises:
        FileNotFoundError: names the nearest chain.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    declared = declared_path("transforms") / f"{name}.yaml"
    if declared.is_file():
        return declared
    names = list_declared("transforms")
    raise FileNotFoundError(f"no chain {str(name)!r}{did_you_mean(str(name), names)}; there are {', '.join(names)}")


def _check_name(chain: str, what: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise KeyError(f"chain {chain} has no {what} {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)`` with the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _free(name: str, taken: Iterable[str]) -> str:
    """The name, with a number if it is taken."""
    taken = set(taken)
    return name if name not in taken else next(n for k in count(2) if (n := f"{name}_{k}") not in taken)


def _plain(value: Any) -> Any:
    """Plain data of a value: what JSON holds, tuples as lists, anything else by its representation."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value) if isinstance(value, Path) else repr(value)
