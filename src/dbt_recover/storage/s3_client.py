"""From options to a botocore client. botocore does all that is needed; boto3 on top of it would
only add to the start of every command.
"""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

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


def connect(options: S3Options) -> Any:
    """An S3 client, safe to share between threads.

    Any: its methods are made at run time from the service's model; mypy knows them from stubs
    only, which do not take keyword arguments put together as ours are.
    """
    session = botocore.session.Session(profile=options.profile or None)
    region = options.region or session.get_config_variable("region")
    if options.role_arn:
        session = _assume(session, options, region)

    def client(style: Literal["path", "virtual", "auto"]) -> Any:
        return session.create_client(
            "s3",
            region_name=region or (_ANY_REGION if options.endpoint_url else None),
            endpoint_url=options.endpoint_url or None,
            verify=options.ca_bundle or None,
            config=_config(options).merge(
                Config(
                    s3={"addressing_style": style},
                    request_checksum_calculation=options.checksum,
                    response_checksum_validation=options.checksum,
                    # More than the threads of one process ever use at a time.
                    max_pool_connections=32,
                )
            ),
        )

    if options.path_style is not None:
        return client("path" if options.path_style else "virtual")
    # auto is botocore's own choice, by the bucket's name. The endpoint may also come from
    # AWS_ENDPOINT_URL or the profile: only the client knows where it ended up.
    automatic = client("auto")
    return client("path") if _has_no_subdomains(host_of(automatic)) else automatic


def host_of(client: Any) -> str:
    """Where a client sends its requests."""
    return urlsplit(client.meta.endpoint_url).hostname or ""


def is_aws(client: Any) -> bool:
    """Whether the store is AWS's own S3, of which more is known than the protocol says."""
    return host_of(client).endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _has_no_subdomains(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return True


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
