"""From options to a boto3 client."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

import boto3.session
import botocore.session
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import NoCredentialsError

from .options import S3Options

_AGENT = "dbt-recover"
# What S3-compatible stores and STS take when no region was said anywhere.
_ANY_REGION = "us-east-1"
_Style = Literal["path", "virtual", "auto"]
_STYLES: dict[bool | None, _Style] = {True: "path", False: "virtual", None: "auto"}


def connect(options: S3Options) -> Any:
    """An S3 client, safe to share between threads.

    Any: its methods are made at run time from the service's model; mypy knows them from stubs
    only, which do not take keyword arguments put together as ours are.
    """
    session = botocore.session.Session(profile=options.profile or None)
    region = options.region or session.get_config_variable("region")
    if options.role_arn:
        session = _assume(session, options, region)

    # boto3 on top of botocore: its data files and defaults, and the name users know.
    return boto3.session.Session(botocore_session=session).client(
        "s3",
        region_name=region or (_ANY_REGION if options.endpoint_url else None),
        endpoint_url=options.endpoint_url or None,
        verify=options.ca_bundle or None,
        config=_config(options).merge(
            Config(
                s3={"addressing_style": _STYLES[options.path_style]},
                request_checksum_calculation=options.checksum,
                response_checksum_validation=options.checksum,
                # More than the threads of one process ever use at a time.
                max_pool_connections=32,
            )
        ),
    )


def is_aws(client: Any) -> bool:
    """Whether the store is AWS's own S3, of which more is known than the protocol says."""
    # From the client: the endpoint may also come from AWS_ENDPOINT_URL or the profile.
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _config(options: S3Options) -> Config:
    return Config(
        # Standard mode tries again after 500, 502-504, throttling, resets and timeouts.
        retries={"mode": "standard", "total_max_attempts": options.max_attempts},
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
        user_agent_extra=_AGENT,
    )


class _Role(CredentialProvider):
    """The only source of a session's credentials: those of the role, renewed before they end."""

    METHOD = "assume-role"
    CANONICAL_NAME = "custom-dbt-recover-role"

    def __init__(self, fetcher: AssumeRoleCredentialFetcher) -> None:
        super().__init__()
        self._fetcher = fetcher

    def load(self) -> DeferredRefreshableCredentials:
        # Deferred: the first request assumes the role, so that its failure is that request's.
        return DeferredRefreshableCredentials(self._fetcher.fetch_credentials, self.METHOD)


def _assume(
    source: botocore.session.Session, options: S3Options, region: str | None
) -> botocore.session.Session:
    """A session that has the role's credentials, as a profile with `role_arn` would give."""
    credentials = source.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    fetcher = AssumeRoleCredentialFetcher(
        # Not the S3 endpoint: STS is elsewhere; AWS_ENDPOINT_URL_STS names another one.
        partial(source.create_client, region_name=region or _ANY_REGION, config=_config(options)),
        credentials,
        options.role_arn,
        extra_args={"RoleSessionName": _AGENT},
    )
    session = botocore.session.Session(profile=options.profile or None)
    session.register_component("credential_provider", CredentialResolver([_Role(fetcher)]))
    return session
