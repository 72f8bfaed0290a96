from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.remote import place, scratch, store
from tests.remote.servers import BUCKET, WebServer, serving


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """Of a server that speaks S3."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scratch folder of its own, short pauses, nothing known yet."""
    monkeypatch.setenv(scratch.FOLDER, str(tmp_path / "scratch"))
    monkeypatch.setattr(store, "PAUSE_S", 0.001)
    monkeypatch.setattr(store, "_filesystems", {})
    monkeypatch.setattr(place, "_answers", place._Answers())


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an empty bucket; this package finds the server by the environment, as a user says it."""
    boto3 = pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for one in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=one["Key"])


@pytest.fixture
def put(s3: Any) -> Callable[..., str]:
    """Puts a file, what is below a folder, or bytes into the bucket; returns the URL."""

    def put(source: Path | bytes, key: str) -> str:
        if isinstance(source, bytes):
            s3.put_object(Bucket=BUCKET, Key=key, Body=source)
        else:
            for file in source.rglob("*") if source.is_dir() else [source]:
                if file.is_file():
                    name = key if file == source else f"{key}/{file.relative_to(source).as_posix()}"
                    s3.upload_file(str(file), BUCKET, name)
        return f"s3://{BUCKET}/{key}"

    return put


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    """A server of the files in tmp_path / "web"."""
    (tmp_path / "web").mkdir()
    with serving(WebServer(tmp_path / "web")) as server:
        yield server
