<?xml version="1.0"?>
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:output omit-xml-declaration="yes"/>
  <xsl:param name="warehouse"/>

  <xsl:template match="/order">
    <xsl:if test="not(line)">
      <xsl:message terminate="yes">order <xsl:value-of select="@id"/> has no lines</xsl:message>
    </xsl:if>
    <delivery order="{@id}" warehouse="{$warehouse}">
      <xsl:apply-templates select="line"/>
    </delivery>
  </xsl:template>

  <xsl:template match="line">
    <item place="{position()}"><xsl:value-of select="."/></item>
  </xsl:template>
</xsl:stylesheet>
