"""Fixtures that more than one module uses: an AWS environment of our own, and S3 servers that
live as long as the session (of each xdist worker).

With DBT_RECOVER_EXAMPLES=100000 the property tests try so many examples (hypothesis' 100 by default).
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings

from other_stores import OtherStore, azurite, google
from servers import S3Server, ServerUnavailable, aws_environment, moto_server, seaweedfs_server

# Started with `&` in a script, or by some CI, SIGINT is ignored, and so by all that we start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if examples := os.environ.get("DBT_RECOVER_EXAMPLES"):
    settings.register_profile("many", max_examples=int(examples))
    settings.load_profile("many")


@pytest.fixture(autouse=True, scope="session")
def _no_aws_of_this_machine() -> Iterator[None]:
    """Neither the developer's credentials nor a proxy come into play, in child processes either."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "AZURE_", "GOOGLE_")) or name.lower() in (
                "http_proxy",
                "https_proxy",
            ):
                patch.delenv(name)
        for name, value in aws_environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_this_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is remembered of the tests' projects on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """A moto server."""
    try:
        with moto_server() as server:
            yield server
    except ServerUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS server."""
    try:
        with seaweedfs_server(tmp_path_factory.mktemp("seaweedfs")) as server:
            yield server
    except ServerUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session", name="azurite")
def _azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherStore]:
    """Azure's emulator."""
    try:
        with azurite(tmp_path_factory.mktemp("azurite")) as store:
            yield store
    except ServerUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session", name="google")
def _google() -> Iterator[OtherStore]:
    """A stand-in for Google's."""
    with google() as store:
        yield store


@dataclass(frozen=True)
class Bucket:
    """A bucket nobody else uses."""

    server: S3Server
    name: str

    @property
    def url(self) -> str:
        """Of an archive in it, as a user would type it."""
        return f"s3://{self.name}/archive"

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which `url` is reached, for a child process."""
        return self.server.environment()

    @property
    def options(self) -> dict[str, Any]:
        """The same for `open_storage(url, options)`."""
        return {"endpoint_url": self.server.endpoint_url}


def fresh_bucket(server: S3Server) -> Bucket:
    """Make one."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    client = server.client()
    client.create_bucket(Bucket=name)
    client.close()
    return Bucket(server, name)


@pytest.fixture
def s3_bucket(moto: S3Server) -> Bucket:
    """A fresh bucket on moto."""
    return fresh_bucket(moto)
