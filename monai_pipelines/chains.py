"""Transform chains: declared once in YAML as knobs and named steps, used by every bundle and by other projects."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import pydoc
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigComponent, ConfigParser
from monai.transforms import Compose

from monai_pipelines import __version__
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.errors import ChainMismatchError, ScanError
from monai_pipelines.transforms.keyed import EachKeyd


class Chain(Compose):
    """A flat `monai.transforms.Compose` of named steps that can describe itself.

    Called with a dictionary it works as any MONAI dictionary transform; called with anything else (a path, an array,
    a tensor) it transforms that value and returns the result.

    Args:
        steps: name -> transform, in order.
        description: plain data; see `describe`.
        key: the dictionary key of a bare input.
    """

    def __init__(self, steps: Mapping[str, Callable], description: dict[str, Any], key: str = "image") -> None:
        super().__init__(list(steps.values()))
        self.step_names = tuple(steps)
        self.key = key
        self._description = description

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
                return super().__call__(input_, *args, **kwargs)
            return super().__call__({self.key: input_}, *args, **kwargs)[self.key]
        except RuntimeError as error:  # MONAI wraps the errors of steps
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, (ScanError, OSError)):
                cause = cause.__cause__
            if cause is None:
                raise
        raise cause  # not in the handler, where MONAI's error would become its context: a cycle


def load_chain(name: str | Path, steps: Mapping[str, Any] | None = None, **knobs: Any) -> Chain:
    """Load a declared transform chain, with some of its knobs or steps changed.

    Args:
        name: a chain of this package (``python -m monai_pipelines show`` lists them) or the path of a YAML file.
        steps: changes by step name: ``None`` or ``False`` switches a step off, a mapping changes its arguments.
        knobs: values for the knobs at the top of the chain's file.

    Returns:
        the chain, flat and picklable.

    Raises:
        FileNotFoundError: no such chain.
        KeyError: an unknown knob or step; names the nearest one.

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
    parser = ConfigParser({**config, "steps": declared_steps})
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
    chain_steps = {step: parser.get_parsed_content(f"steps::{step}") for step in declared_steps}
    keys = config.get("keys", "image")
    return Chain(chain_steps, description, key=keys if isinstance(keys, str) else keys[0])


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
