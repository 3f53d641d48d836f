from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway import Limits, Loading, Message, MessageError
from gateway.registry import read_component
from gateway.testing import FakeHost, arriving

HOST = FakeHost()
ORDER = b'<order id="A1"><!-- new --><line>nut</line><line>bolt &amp; co</line></order>'
XSL = 'version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"'
IDENTITY = (
    '<xsl:template match="@*|node()"><xsl:copy><xsl:apply-templates select="@*|node()"/></xsl:copy></xsl:template>'
)


def put(folder: Path, rules: str, name: str = "order.xsl", attributes: str = XSL) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"<xsl:stylesheet {attributes}>\n{rules}\n</xsl:stylesheet>")
    return path


def root(content: str) -> str:
    """A stylesheet's rule for the whole document, on its second line."""
    return f'<xsl:template match="/">{content}</xsl:template>'


def step(folder: Path, value: Any = "order.xsl") -> Any:
    return read_component("Step", {"xslt": value}, Loading(folder=folder))


def run(folder: Path, rules: str, value: Any = "order.xsl", raw: bytes = ORDER, host: FakeHost = HOST) -> Message:
    put(folder, rules)
    made: Message = step(folder, value)(arriving(host, raw, content_type="application/xml"))
    return made


def refusal(folder: Path, rules: str, raw: bytes = ORDER, content_type: str = "application/xml") -> MessageError:
    put(folder, rules)
    check = step(folder)
    with pytest.raises(MessageError) as refused:
        check(arriving(HOST, raw, content_type=content_type))
    return refused.value


def complaint(folder: Path, value: Any = "order.xsl") -> tuple[tuple[str | int, ...], str]:
    with pytest.raises(ValidationError) as refused:
        step(folder, value)
    ((error),) = refused.value.errors()
    return error["loc"], error["msg"].removeprefix("Value error, ")


class TestOutput:
    @pytest.mark.parametrize(
        ("output", "rules", "body", "content_type"),
        [
            ("", root("<n/>"), b'<?xml version="1.0"?>\n<n/>\n', "application/xml"),
            ('<xsl:output method="text"/>', root("é"), "é".encode(), "text/plain; charset=utf-8"),
            ('<xsl:output method="text" encoding="ISO-8859-1"/>', root("é"), b"\xe9", "text/plain; charset=iso-8859-1"),
            ("", root("<html><br/></html>"), b"<html><br></html>\n", "text/html; charset=utf-8"),
            ("", root("<HTML>é</HTML>"), "<HTML>é</HTML>\n".encode(), "text/html; charset=utf-8"),
            ('<xsl:output method="html"/>', root("<p/>"), b"<p></p>\n", "text/html; charset=utf-8"),
            (
                '<xsl:output method="text" media-type="application/json"/>',
                root('{"id": "<xsl:value-of select="order/@id"/>"}'),
                b'{"id": "A1"}',
                "application/json; charset=utf-8",
            ),
            (
                '<xsl:output omit-xml-declaration="yes" encoding="ISO-8859-1"/>',
                root("<n>é</n>"),
                b"<n>\xe9</n>\n",
                "application/xml; charset=iso-8859-1",
            ),
            (
                "",
                root('<xsl:text disable-output-escaping="yes">&lt;n/&gt;</xsl:text>'),
                b'<?xml version="1.0"?>\n<n/>\n',
                "application/xml",
            ),
            ('<xsl:output method="text"/>', root(""), b"", "text/plain; charset=utf-8"),
        ],
    )
    def test_the_body_and_its_content_type_are_as_the_stylesheet_says(
        self, tmp_path: Path, output: str, rules: str, body: bytes, content_type: str
    ) -> None:
        made = run(tmp_path, output + rules)
        assert (made.body, made.content_type) == (body, content_type)

    def test_the_tree_of_what_was_made_can_be_read(self, tmp_path: Path) -> None:
        made = run(
            tmp_path,
            root('<ids><xsl:for-each select="//line"><id><xsl:value-of select="."/></id></xsl:for-each></ids>'),
        )
        assert made.tree == {"ids": {"id": ["nut", "bolt & co"]}}

    def test_comments_and_instructions_of_the_body_are_there(self, tmp_path: Path) -> None:
        raw = b"<?first x?><a>b<!--c-->d<?e f?></a>"
        assert run(tmp_path, IDENTITY, raw=raw).body == b'<?xml version="1.0"?>\n<?first x?><a>b<!--c-->d<?e f?></a>\n'

    def test_what_it_imports_from_its_folder_counts_and_its_own_output_wins(self, tmp_path: Path) -> None:
        put(tmp_path, '<xsl:output method="text" media-type="text/x-a"/>' + root("a"), "parts/a.xsl")
        rules = '<xsl:import href="parts/a.xsl"/><xsl:output media-type="text/x-own"/>'
        assert run(tmp_path, rules).content_type == "text/x-own; charset=utf-8"


class TestParams:
    RULES = '<xsl:output method="text"/><xsl:param name="p">none</xsl:param>' + root('<xsl:value-of select="$p"/>')

    @pytest.mark.parametrize(
        "value", ["plain", 'it\'s "q" <&>', "'", '"', "document('/etc/passwd')", "//line", "é 🌍", ""]
    )
    def test_a_param_is_text_whatever_it_holds(self, tmp_path: Path, value: str) -> None:
        put(tmp_path, self.RULES)
        message = arriving(HOST, ORDER, content_type="application/xml").replace(subject=value)
        made = step(tmp_path, {"stylesheet": "order.xsl", "params": {"p": "{{ message.subject }}"}})(message)
        assert made.body == value.encode()

    def test_a_param_that_is_not_given_has_the_value_of_the_stylesheet(self, tmp_path: Path) -> None:
        assert run(tmp_path, self.RULES).body == b"none"

    def test_a_param_can_be_of_what_is_imported(self, tmp_path: Path) -> None:
        put(tmp_path, self.RULES, "base.xsl")
        value = {"stylesheet": "order.xsl", "params": {"p": 7}}
        assert run(tmp_path, '<xsl:import href="base.xsl"/>', value).body == b"7"

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("{{ body.nothing }}", "xslt.params.p: body.nothing: 'nothing' is not there; body has order"),
            ("a\x00", "xslt.params.p: it holds a character that XML does not have"),
            ("a\ud800", "xslt.params.p: it holds a character that XML does not have"),
        ],
        ids=["undefined", "NUL", "surrogate"],
    )
    def test_a_param_that_can_not_be_given_refuses_the_message(self, tmp_path: Path, value: str, text: str) -> None:
        with pytest.raises(MessageError) as refused:
            run(tmp_path, self.RULES, {"stylesheet": "order.xsl", "params": {"p": value}})
        assert str(refused.value) == text


class TestRefusals:
    @pytest.mark.parametrize(
        ("rules", "text"),
        [
            (
                root('<xsl:message>hm</xsl:message><xsl:message terminate="yes">no total in <xsl:value-of select="*/@id"/></xsl:message>'),
                "xslt: order.xsl: no total in A1",
            ),
            (root('<n><xsl:value-of select="$u"/></n>'), "xslt: order.xsl line 2: Variable 'u' has not been declared"),
            (root('<xsl:call-template name="u"/>'), "xslt: order.xsl line 2: The called template 'u' was not found"),
            (
                root('<n><xsl:value-of select="upper-case(\'a\')"/></n>'),
                "xslt: order.xsl line 2: it calls a function that XSLT 1.0 does not have",
            ),
            (
                '<xsl:template match="/"><xsl:apply-templates select="."/></xsl:template>',
                "xslt: order.xsl line 2: its templates call each other without end",
            ),
            (
                '<xsl:template match="/" name="r"><xsl:param name="p"/><a><xsl:call-template name="r">'
                '<xsl:with-param name="p"><xsl:call-template name="r"/></xsl:with-param></xsl:call-template></a></xsl:template>',
                "xslt: order.xsl line 2: its templates call each other without end",
            ),
            (
                root("some text"),
                "xslt: order.xsl made no element of this message; for text, write "
                '<xsl:output method="text"/> into it',
            ),
        ],
    )  # fmt: skip
    def test_what_the_stylesheet_can_not_make_is_refused(self, tmp_path: Path, rules: str, text: str) -> None:
        assert str(refusal(tmp_path, rules)) == text

    @pytest.mark.parametrize(
        ("raw", "content_type", "code", "text"),
        [
            (b"{}", "application/json", "refused", "xslt: order.xsl reads XML, the body is application/json; write the step format: xml before"),
            (b"<a>", "text/xml", "malformed", "xml: malformed at line 1"),
            (b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>", "text/xml", "malformed", "xml: the document has a DTD"),
            (b"", "text/xml", "malformed", "xml: the body is empty"),
            (b"<a>" * 65 + b"</a>" * 65, "text/xml", "malformed", "xml: nested more than 64 deep"),
        ],
    )  # fmt: skip
    def test_a_body_that_is_no_xml_within_the_limits_is_refused(
        self, tmp_path: Path, raw: bytes, content_type: str, code: str, text: str
    ) -> None:
        error = refusal(tmp_path, IDENTITY, raw, content_type)
        assert error.code == code
        assert str(error).startswith(text)

    def test_more_than_a_template_may_write_is_refused(self, tmp_path: Path) -> None:
        host = FakeHost(limits=Limits(template_output="1KiB"))
        put(tmp_path, '<xsl:output method="text"/>' + root("x" * 1025))
        with pytest.raises(MessageError) as refused:
            step(tmp_path)(arriving(host, ORDER, content_type="text/xml"))
        assert str(refused.value) == "xslt: order.xsl wrote 1025 bytes, 1024 at most (limits.template_output)"

    def test_a_text_as_long_as_the_sender_likes_is_cut(self, tmp_path: Path) -> None:
        rules = root('<xsl:message terminate="yes"><xsl:value-of select="."/></xsl:message>')
        assert len(str(refusal(tmp_path, rules, b"<a>" + b"x" * 5000 + b"</a>"))) < 250

    def test_after_a_refusal_the_next_message_is_as_if_it_had_not_been(self, tmp_path: Path) -> None:
        rules = root('<xsl:if test="no"><xsl:message terminate="yes">no</xsl:message></xsl:if><n/>')
        assert str(refusal(tmp_path, rules, b"<a/>".replace(b"a", b"no"))) == "xslt: order.xsl: no"
        check = step(tmp_path)
        for _ in range(2):
            with pytest.raises(MessageError):
                check(arriving(HOST, b"<no/>", content_type="text/xml"))
            assert check(arriving(HOST, b"<a/>", content_type="text/xml")).tree == {"n": None}


class TestInside:
    """A stylesheet touches nothing but the message."""

    NEVER = "it reads or writes a file, or asks the network, which is never done; use params for what it needs"

    @pytest.mark.parametrize("url", ["beside.xml", "/etc/hostname", "http://127.0.0.1:1/x", "ftp://127.0.0.1:1/x", ""])
    def test_it_reads_no_other_document(self, tmp_path: Path, url: str) -> None:
        (tmp_path / "beside.xml").write_text("<inside/>")
        rules = root(f"<n><xsl:copy-of select=\"document('{url}')\"/></n>")
        assert str(refusal(tmp_path, rules)) == f"xslt: order.xsl line 2: {self.NEVER}"

    @pytest.mark.parametrize(
        ("namespace", "element"),
        [
            ("http://exslt.org/common", '<e:document href="{}"><n/></e:document>'),
            ("http://icl.com/saxon", '<e:output href="{}"><n/></e:output>'),
            ("http://icl.com/saxon", '<e:output file="{}"><n/></e:output>'),
            ("org.apache.xalan.xslt.extensions.Redirect", "<e:write select=\"'{}'\"><n/></e:write>"),
            ("http://www.w3.org/1999/XSL/Transform", '<xsl:document href="{}"><n/></xsl:document>'),
        ],
    )
    def test_it_writes_no_file(self, tmp_path: Path, namespace: str, element: str) -> None:
        written = tmp_path / "written.xml"
        attributes = f'{XSL.replace("1.0", "1.1")} xmlns:e="{namespace}" extension-element-prefixes="e"'
        put(tmp_path, root(f"<r>{element.format(written)}</r>"), attributes=attributes)
        with pytest.raises((MessageError, ValidationError)) as refused:
            step(tmp_path)(arriving(HOST, ORDER, content_type="text/xml"))
        assert not written.exists()
        assert self.NEVER in str(refused.value)


class TestLoading:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("<a>\n</b>", "order.xsl line 2: it is no XML: Opening and ending tag mismatch: a line 1 and b"),
            ("", "order.xsl line 1: it is no XML: "),
            (
                "\n<order/>",
                "order.xsl line 2: it is no XSLT stylesheet: its root element is order, expected xsl:stylesheet with "
                'version="1.0" and xmlns:xsl="http://www.w3.org/1999/XSL/Transform"',
            ),
            (
                f'<xsl:stylesheet {XSL.replace("1.0", "2.0")}/>',
                "order.xsl line 1: it says version 2.0, and XSLT 1.0 is what runs here; write it in XSLT 1.0, with "
                'version="1.0"',
            ),
            (
                f'<!DOCTYPE x [<!ENTITY nbsp "&#160;">]><xsl:stylesheet {XSL}/>',
                "order.xsl line 1: it has a DTD (<!DOCTYPE …>); leave it out, and write characters as they are",
            ),
            (
                f'<xsl:stylesheet {XSL}>\n<xsl:template match="/"><xsl:if>a</xsl:if></xsl:template></xsl:stylesheet>',
                "order.xsl line 2: xsl:if : test is not defined",
            ),
            (
                f'<xsl:stylesheet {XSL}>\n\n<xsl:template match="/"><xsl:valueof/></xsl:template></xsl:stylesheet>',
                "order.xsl line 3: xsltStylePreCompute: unknown xsl:valueof",
            ),
            (
                f'<xsl:stylesheet {XSL}><xsl:include href="none.xsl"/></xsl:stylesheet>',
                "order.xsl: it includes none.xsl, and there is no such file beside it",
            ),
            (
                f'<xsl:stylesheet {XSL}><xsl:import href="../out.xsl"/></xsl:stylesheet>',
                "order.xsl: it includes out.xsl from outside of its own folder; keep that stylesheet beside it",
            ),
            (
                f'<xsl:stylesheet {XSL}><xsl:import href="http://127.0.0.1:1/a.xsl"/></xsl:stylesheet>',
                "order.xsl: it includes http://127.0.0.1:1/a.xsl, which is never fetched; keep that stylesheet beside it",
            ),
        ],
    )  # fmt: skip
    def test_a_stylesheet_that_is_broken_is_told_with_its_line(self, tmp_path: Path, text: str, said: str) -> None:
        put(tmp_path, root("<out/>"), "out.xsl")
        folder = tmp_path / "inner"
        folder.mkdir()
        (folder / "order.xsl").write_text(text)
        place, told = complaint(folder)
        assert place == ("xslt",)
        assert told == said or said.endswith(": ")
        assert told.startswith(said)

    def test_a_mistake_in_what_it_imports_is_told_with_that_file(self, tmp_path: Path) -> None:
        put(tmp_path, '<xsl:import href="part.xsl"/>')
        put(tmp_path, "\n\n<xsl:template/>", "part.xsl")
        assert complaint(tmp_path)[1] == "part.xsl line 4: xsl:template: need to specify match or name attribute"

    @pytest.mark.parametrize(
        ("value", "place", "text"),
        [
            ("none.xsl", ("xslt",), "no such file: none.xsl; relative paths start at the folder of the file that names them"),
            ({"stylesheet": "none.xsl"}, ("xslt", "stylesheet"), "no such file: none.xsl"),
            ({"params": {}}, ("xslt", "stylesheet"), "Field required"),
            ({"stylesheet": "order.xsl", "params": {"p": "{{ body. }}"}}, ("xslt", "params", "p"), "expected name or number"),
            ({"stylesheet": "order.xsl", "params": {"q": "a"}}, ("xslt",), 'params: order.xsl has no <xsl:param name="q"/> beside its templates; it has p'),
            ({"stylesheet": "order.xsl", "param": {"p": "a"}}, ("xslt", "param"), 'unknown key "param"; did you mean params?'),
            (None, ("xslt",), "expected the settings of xslt as key: value, such as xslt: {stylesheet: …}, got nothing"),
        ],
    )  # fmt: skip
    def test_a_mistake_in_the_settings_is_told_at_its_place(
        self, tmp_path: Path, value: Any, place: tuple[str, ...], text: str
    ) -> None:
        put(
            tmp_path,
            '<xsl:param name="p"/>' + root('<xsl:apply-templates><xsl:with-param name="q"/></xsl:apply-templates>'),
        )
        found, said = complaint(tmp_path, value)
        assert found == place
        assert said.startswith(text)

    def test_what_it_is_made_of_is_noted_so_that_a_change_is_seen(self, tmp_path: Path) -> None:
        put(tmp_path, '<xsl:import href="part.xsl"/>')
        part = put(tmp_path, root("<n/>"), "part.xsl")
        before, after = Loading(folder=tmp_path), Loading(folder=tmp_path)
        read_component("Step", {"xslt": "order.xsl"}, before)
        part.write_text(part.read_text() + "<!-- changed -->")
        read_component("Step", {"xslt": "order.xsl"}, after)
        assert {path.name for path in before.files} == {"order.xsl", "part.xsl"}
        assert [path.name for path in before.files if before.files[path] != after.files[path]] == ["part.xsl"]
