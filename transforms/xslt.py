"""`xslt: order.xsl`: the body becomes what an XSLT 1.0 stylesheet makes of it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from gateway import ExistingFile, Message, MessageError, Settings, Template
from transforms._stylesheet import Stylesheet

_FILE: TypeAdapter[ExistingFile] = TypeAdapter(ExistingFile)
_TAKEN = ("_input", "profile_run")
"""Names that lxml has for itself where the parameters are given."""


def _loaded(value: object, info: ValidationInfo) -> Stylesheet:
    made = Stylesheet(_FILE.validate_python(value, context=info.context))
    for file in made.files:  # noted as well, so that a change of theirs is a change
        _FILE.validate_python(file, context=info.context)
    return made


StylesheetFile = Annotated[
    Stylesheet,
    PlainValidator(_loaded),
    PlainSerializer(lambda stylesheet: str(stylesheet.path), return_type=str),
    WithJsonSchema({"type": "string", "title": "path", "examples": ["stylesheets/order.xsl"]}),
]


class Step(Settings):
    """Makes a new body of one that is XML, with an XSLT 1.0 stylesheet.

    The body is XML, html or text as `xsl:output` says, and its content type with it; `template_output` of `limits` is
    the most that may be written. The stylesheet is compiled at load. It may import and include what is in its own
    folder; while it runs it reads and writes nothing: `document()` and whatever writes files fail. An
    `xsl:message terminate="yes"` refuses the message with its text. It should make the same of the same message: give
    it `now: "{{ now() }}"` as a param, rather than let it ask the clock.
    """

    short: ClassVar[str] = "stylesheet"

    stylesheet: StylesheetFile = Field(
        description="the file of the stylesheet (.xsl), relative to the file that names it"
    )
    params: dict[str, Template] = Field(
        {}, description='name: value. What `<xsl:param name="…"/>` of the stylesheet is, as text'
    )

    @model_validator(mode="after")
    def _knows_its_params(self) -> Step:
        known = self.stylesheet.params
        for name in self.params:
            if name not in known or name in _TAKEN:
                has = f"it has {', '.join(sorted(known))}" if known else "it has none"
                raise ValueError(
                    f'params: {self.stylesheet.path.name} has no <xsl:param name="{name}"/> beside its templates; {has}'
                )
        return self

    def __call__(self, message: Message) -> Message:
        values: dict[str, str] = {}
        name = ""
        try:
            for name, template in self.params.items():
                values[name] = template.text_of(message)
        except MessageError as error:
            if error.code != "refused":  # a body that can't be parsed is wrong as a whole
                raise
            raise MessageError(f"xslt.params.{name}: {error}") from error
        return self.stylesheet.apply(message, values)
