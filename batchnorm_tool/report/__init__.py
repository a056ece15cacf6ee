"""Pages and charts about runs and comparisons: inline SVG, one HTML document, text for terminals.

Nothing here reads a file or prints: every function takes data and returns text. The files
`text_*` serve the terminal; `run_page`, `compare_page`, `diff_page` and `history_page` make the
HTML pages, of sections and of charts with their numbers; `norm_charts` and `figures` are what they
share. `svg`, `charts`, `page` and `bins` lie below them and know nothing of runs. What escapes
text for HTML stands here, below them all.
"""

import html

from batchnorm_tool.display import visible

_VOID = frozenset({"br", "link", "meta"})


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def escape(value: object) -> Html:
    """Return a value as text for an element's content.

    Example:
        >>> escape("<b>") + escape(Html("<b>"))
        '&lt;b&gt;<b>'
    """
    if isinstance(value, Html):
        return value
    return Html(html.escape(visible(str(value))))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return one element.

    Args:
        name: Its name, such as ``"td"``; never from a file.
        children: Its content in order; `Html` as it is, all else escaped.
        attributes: Its attributes. A trailing underscore is dropped and others become hyphens;
            ``None`` and ``False`` leave the attribute out, ``True`` writes its bare name. Values
            are always escaped.

    Example:
        >>> tag("td", "a < b", class_="name", title='"x"')
        '<td class="name" title="&quot;x&quot;">a &lt; b</td>'
    """
    opening = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{opening}>")
    return Html(f"<{name}{opening}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Return several pieces after one another, each escaped unless it is markup.

    Example:
        >>> join("a&", tag("br"), None)
        'a&amp;<br>'
    """
    return Html("".join(escape(child) for child in children if child is not None))


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{html.escape(visible(str(value)))}"'
