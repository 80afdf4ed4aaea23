"""Nasty texts, one line each, and what mixes them: a strategy, and a fuzzer of answers."""

import random
from collections.abc import Iterator, Sequence

from hypothesis import strategies as st

BOX = "\\boxed{"

NASTY = {
    "nothing": "",
    "blanks": " \t\r\n\v\f\u00a0\u2003",
    "line ends": "\na\r\nb\rc\u0085d\u2028e\u2029f\n",
    "nul": "a\x00b",
    "ansi escapes": "\x1b[2J\x1b]0;title\x07\x1b[31mred\x9b1A",
    "bidi overrides": "\u202egnp.exe\u2066x\u2069\u200f",
    "zero width": "A\u200b\u200d\ufeff\u00ad",
    "tag characters": "\U000e0041\U000e007f",
    "lone surrogates": "\ud800 \udfff\udc80",
    "combining pile": "A" + "\u0301" * 500,
    "other digits": "\u0663\uff13\u00b2\u2167",
    "case that grows": "\u0130\u1e9e\ufb03",
    "script": "</script><script>document.title='broken'</script>",
    "comment": "<!--<script>--!><![CDATA[<b>]]>",
    "picture with a handler": "<img src=x onerror=\"document.title='broken'\">",
    "attribute": "\" onmouseover=\"document.title='broken'\" x='",
    "entities": "&lt;b&gt; &amp;amp; &#x3c;b&#62; &#0; &notanentity",
    "end of everything": "</pre></td></table></title></style></textarea></body></html><b>",
    "template": "{{ 7 * 7 }}{% raw %}{# #}${7*7}#{7*7}",
    "rich markup": "[bold red]x[/] [link=file:///etc/passwd]y[/link] \\[z]",
    "format fields": "%s %n %(x)s {0} {x.__class__} $HOME `id`",
    "dunder": "().__class__.__bases__[0].__subclasses__()",
    "import": "__import__('os').system('touch executed')",
    "calls": "exec(chr(49)) eval(1) open(0)",
    "special tokens": "<|im_end|><|im_start|>system <image><|image_pad|><|vision_start|><|endoftext|></s>[INST]",
    "thoughts": "<think></think><think>" + BOX + "1}</think>",
    "path": "../../../etc/passwd\x00.png",
    "json": '"}],"x":[{"a":NaN}]\\u0000\\',
    "spreadsheet": "=HYPERLINK(1)+cmd|' /C calc'!A0",
    "power tower": "9**9**9**9",
    "latex tower": "9^{9^{9^{9}}}",
    "factorial": "999999999!",
    "slow power": "9**(9*9*9*9*9*9*9*9*9)",
    "division by nothing": "1/0",
    "not finite": "nan inf -inf 1e999",
    "open box": BOX + "1",
    "boxes all the way": BOX * 300 + "1" + "}" * 300,
    "box after box": (BOX + "1} ") * 300,
    "half a macro": "\\frac{1}{\\sqrt{\\text{\\",
    "braces": "{" * 900 + "1" + "}" * 900,
    "wrong braces": "}}}{{{" * 100,
    "brackets": "(" * 900 + "1" + ")" * 900,
    "minus signs": "-" * 900 + "1",
    "roots": "sqrt(" * 200 + "2" + ")" * 200,
    "fractions": "\\frac{1}{" * 200 + "2" + "}" * 200,
    "dollars": "$" * 1000,
    "letters": "A, " * 300,
    "mixed number with two blanks": "1  1/2",
}

# Above a megabyte each: what they cost must grow with their length and no faster.
LONG = {
    "digits": "7" * 1_000_000,
    "blanks": "1" + " \t" * 500_000 + "1",
    "line ends": "\n" * 1_000_000,
    "open boxes": BOX * 150_000,
    "closed boxes": (BOX + "1}") * 120_000,
    "open braces": BOX + "{" * 1_000_000,
    "nested braces": BOX + "{" * 500_000 + "1" + "}" * 500_000 + "}",
    "thoughts": "<think>" * 150_000,
    "ends of thoughts": "</think>" * 130_000,
    "dollars": "$" * 1_000_000,
    "text macros": "\\text{" * 170_000,
    "letters": "A, " * 340_000,
    "option text": "A. " + " x" * 500_000,
    "escapes": "\x1b[2J" * 250_000,
    "surrogates": "\ud800" * 1_000_000,
    "markup": "<b>&" * 250_000,
}


def hostile_text(max_parts: int = 8) -> st.SearchStrategy[str]:
    """Pieces of the nasty texts, of LaTeX and of any characters, surrogates and controls included, in any order."""
    latex = ["\\text{", "\\frac", "\\sqrt", "{", "}", "^", "**", "!", "(", ")", "$", "A", "1", "1.5", "\\pi", ",", " "]
    part = st.one_of(
        st.sampled_from([*NASTY.values(), BOX, "<think>", "</think>", *latex]),
        st.text(st.characters(), max_size=12),
        st.text("<>&\"'/=-! \n\x00\x1b{}\\abA1", max_size=12),
    )
    return st.lists(part, max_size=max_parts).map("".join)


# What the fuzzer splices into answers: macros, signs that mathruler deletes, look-alikes, Python.
_SPLICES = (
    r"\frac{ \dfrac1 \tfrac \sqrt{ \sqrt[ \pi \alpha \vartheta \phi \infty \cdot \times \text{ \mathrm{ \left( "
    r"\{ \} \! \, \; \% \$ $ % { } ( ) [ ] ^ ** _ __ . .. , ; : = == < > ! | & ~ @ # ' \" ` \\ / // + - * "
    "0 1 2 9 12 1.5 .5 1e3 1e999 0x1f 0b1 1_000 2j x y e i d pi sqrt ln log eye oo im re li ff id or in is if lambda "
    "ⅹ ⅾ ⅽ ⅰ ℯ ⅈ 𝑥 𝐝 ﹏ ＿ ． （ ） ［ ］ ² ½ Ⅷ １ ٣ ０ √ π ∞ − · × ÷ ° ß ſ µ ϖ a\u0301 \u200b \ufeff "
    "x.y ().x x[0] x(0) f(x) __doc__ _$_ .__class__ .diff( .subs( globals() eval( exec( open( __import__( lambda: "
    "million billion cm degree and or \n \t \r \x00"
)
PIECES = _SPLICES.split(" ")


def fuzzed_answers(seeds: Sequence[str], number: int, seed: int) -> Iterator[str]:
    """Texts made of `seeds` by a few splices, cuts and insertions each."""
    draw = random.Random(seed)
    for _ in range(number):
        text = draw.choice(seeds)
        for _ in range(draw.randint(1, 5)):
            start = draw.randint(0, len(text))
            end = draw.randint(start, min(start + 4, len(text))) if draw.random() < 0.5 else start
            piece = draw.choice(PIECES)
            if draw.random() < 0.2:
                other = draw.choice(seeds)
                piece = other[draw.randint(0, len(other)) :][: draw.randint(1, 12)]
            text = text[:start] + piece + text[end:]
        yield text
