"""What made the features in a folder, and which of its files must be made."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from monai_pipelines.chains import Chain
from monai_pipelines.data.prepared import why_unusable
from monai_pipelines.data.slide_table import slide_source
from monai_pipelines.errors import ChainMismatchError, CohortError, ScanError
from monai_pipelines.features.files import read_origin
from monai_pipelines.networks import TileBackbone
from monai_pipelines.networks.backbone import description_hash
from monai_pipelines.remote import Place, as_place
from monai_pipelines.versions import library_versions

logger = logging.getLogger(__name__)

Row = dict[str, Any]
NO_CHAIN: dict[str, Any] = {"steps": {}, "versions": {}}


class Origin:
    """What makes the features, described once: hashing a backbone's weights takes time."""

    def __init__(self, chain: Chain, backbone: TileBackbone) -> None:
        self.chain, self.backbone = chain, backbone.describe()
        self.num_features = backbone.num_features
        self.attributes = {
            "chain_fingerprint": chain.fingerprint(),
            "backbone_fingerprint": description_hash(self.backbone),
            "backbone": json.dumps(self.backbone),
            "chain": json.dumps(chain.describe()),
            "versions": json.dumps(library_versions("torch", "monai")),
        }

    def num_tiles_made(self, file: Place, item: Mapping[str, Any]) -> int:
        """Tiles in the file of a slide if it is complete and was made in this way, otherwise 0."""
        made = read_origin(file, self.num_features) if file.exists() else None
        if made is None or made[0].get("source") != slide_source(item) or self.differences(made[0]):
            return 0
        return made[1]

    def differences(self, attributes: Mapping[str, Any]) -> list[str]:
        """How the origin of a file differs, as far as its attributes say."""
        different = []
        if attributes.get("backbone_fingerprint") not in (None, self.attributes["backbone_fingerprint"]):
            then = _described(attributes.get("backbone", "{}"))
            different += [
                f"backbone.{key}: {then.get(key)!r} there, {now!r} here"
                for key, now in self.backbone.items()
                if then.get(key) != now
            ]
        if attributes.get("chain_fingerprint") not in (None, self.attributes["chain_fingerprint"]):
            try:
                self.chain.check_same(
                    NO_CHAIN | _described(attributes.get("chain", "{}"))
                )  # library versions may differ
            except ChainMismatchError as error:
                different += error.differences
        return different


def _described(text: str) -> dict[str, Any]:
    """What an attribute describes; nothing if it is damaged."""
    try:
        described = json.loads(text)
    except ValueError:
        return {}
    return described if isinstance(described, dict) else {}


def check_files(
    folder: Place, slides: Mapping[Place, Mapping[str, Any]], rows: Mapping[Place, Row], origin: Origin
) -> tuple[list[Place], set[str]]:
    """Fill in the rows of kept and unusable files; the files to make, and the precisions of the kept ones."""
    todo: list[Place] = []
    precisions: set[str] = set()
    different: defaultdict[str, list[Place]] = defaultdict(list)
    for file, item in slides.items():
        try:
            made = read_origin(file, origin.num_features)
        except ScanError as error:
            rows[file].update(status="skipped", reason=why_unusable(error, item["image"]))
            continue
        if made is None:
            if file.exists() and not as_place(item["image"]).exists():
                reason = f"{file.name} is damaged, and the slide to make it again is missing; restore one of them"
                rows[file].update(status="skipped", reason=reason)
                continue
            if file.exists():
                logger.warning("%s: damaged, made again", file)
            todo.append(file)
            continue
        attributes, num_tiles = made
        for difference in origin.differences(attributes):
            different[difference].append(file)
        if not as_place(item["image"]).exists() or attributes.get("source") in (None, slide_source(item)):
            rows[file].update(status="kept", num_tiles=num_tiles)
            precisions.update({attributes["precision"]} if "precision" in attributes else ())
        else:
            todo.append(file)
    if different:
        problems = [f"{len(files)} file(s) such as {files[0].name}: {text}" for text, files in different.items()]
        way_out = "choose another features_dir, delete this one, or use the chain and backbone it was made with"
        raise CohortError(folder, [*problems, way_out])
    return todo, precisions
