"""`validate: {schema: order.json}`: only a body that keeps to the schema passes. It checks, and changes nothing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationInfo, WithJsonSchema

from gateway import ExistingFile, Message, Settings
from transforms._schema import Schema, schema_of

_FILE: TypeAdapter[ExistingFile] = TypeAdapter(ExistingFile)


def _loaded(value: object, info: ValidationInfo) -> Schema:
    return schema_of(_FILE.validate_python(value, context=info.context))


SchemaFile = Annotated[
    Schema,
    PlainValidator(_loaded),
    PlainSerializer(lambda schema: str(schema.path), return_type=str),
    WithJsonSchema({"type": "string", "examples": ["schemas/order.json", "schemas/order.xsd"]}),
]


class Step(Settings):
    """Refuses a body that does not keep to a schema, and says where and why.

    In `accept` the sender is told; in `steps` it is a dead letter. The schema is compiled at load. It may refer to
    other files in its own folder; nothing is ever fetched from a network.
    """

    schema_: SchemaFile = Field(
        alias="schema",
        description="a JSON Schema (.json; draft by `$schema`, else 2020-12; formats are checked) or an XSD (.xsd), "
        "relative to the file that names it",
    )

    def __call__(self, message: Message) -> Message:
        self.schema_.check(message)
        return message
