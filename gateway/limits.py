"""The limits of RELIABILITY: on by default, set per gateway or per route under `limits:`."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, field_validator
from pydantic_core import CoreSchema

from gateway.exact import exact
from gateway.units import Duration, Rate, Size, duration, rate, size


class Limits(BaseModel):
    """What a peer may ask of the gateway. Sizes are bytes, times are seconds once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return exact(handler(source))  # type: ignore[no-any-return]

    message: Size = Field(size("1MiB"), le=64 * 1024**2, description="the largest body of a message, 64MiB at most")
    headers: Size = Field(size("32KiB"), description="all header lines of one message together")
    header_count: int = Field(100, ge=1, description="header lines of one message")
    header_line: Size = Field(size("8KiB"), description="one header line, or an HTTP request line")
    handshake: Duration = Field(
        duration("10s"), description="time for a TLS handshake; HTTP: for the first byte and all headers"
    )
    body_rate: Rate = Field(
        rate("1024/s"), description="bytes a second below which a body is too slow, after 5 s of it"
    )
    idle: Duration = Field(duration("60s"), description="HTTP: time between requests of one connection")
    request: Duration = Field(duration("60s"), description="HTTP: time for a whole request to arrive")
    frame: Duration = Field(duration("60s"), description="MLLP, TCP, WebSocket, AMQP, MQTT: time within one frame")
    connections: int = Field(10_000, ge=1, description="connections of one listener")
    connections_per_address: int = Field(256, ge=1, description="connections of one peer address, `trusted` excepted")
    new_connections: Rate = Field(rate("50/s"), description="new connections of one peer address, `trusted` excepted")
    trusted: tuple[str, ...] = Field(
        ("127.0.0.0/8", "::1/128"), description="networks that the two limits above do not hold for"
    )
    json_depth: int = Field(64, ge=1, le=512, description="nesting of JSON, and of what other formats parse to")
    json_string: Size = Field(size("1MiB"), description="one JSON string")
    json_digits: int = Field(400, ge=1, description="digits of one JSON number")
    xml_depth: int = Field(64, ge=1, le=256, description="nesting of XML elements")
    xml_elements: int = Field(100_000, ge=1, description="elements of one XML document")
    xml_attributes: int = Field(128, ge=0, description="attributes of one XML element")
    decompressed_ratio: int = Field(100, ge=1, description="how many times larger a body may be once decompressed")
    template_output: Size = Field(size("1MiB"), description="what one template, or stylesheet, may write")
    in_flight: int = Field(256, ge=1, description="messages of one route taken and not yet answered; then senders wait")
    in_memory: int = Field(256, ge=1, description="stored messages of one route that are also held in memory")
    in_memory_size: Size = Field(size("64MiB"), description="bodies of those, together")

    @field_validator("trusted")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network)
        return networks

    def trusts(self, address: str) -> bool:
        """Whether this peer address is in one of the `trusted` networks. A text that is no address is not."""
        try:
            peer = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if peer.version == 6 and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in ip_network(network) for network in self.trusted)
