"""Plain technical English in everything that people read: source text, messages, pages, documentation, recipes.

A word is banned if engineers use another one for the same thing, or if it is archaic. The list only has words and
phrases with few legitimate uses. To allow one in a file, add a line with the reason to `EXCEPTIONS`.
"""

import io
import re
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src/vgpo", "tests", "benchmarks", "studies", "examples", "recipes", "docs", ".ci")
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".jinja", ".js", ".css", ".ipynb", ".cff"}
BLANK = r"\s+"
PLACEHOLDER = re.compile(r"\{[^{}\n]*\}")
NAMES = {"Makefile", "Dockerfile", "run"}

# Pattern (any whitespace for a blank, case ignored) -> what to write instead.
BANNED = {
    # One word for one thing
    r"pictures?": "image (video, audio; media for all three)",
    r"data[-\s]+sets?": "dataset",
    r"golds?(?!:)": "reference answer",
    r"wanted": "required, requested or expected",
    r"(hears|heard)": "gets, is called with",
    r"passed over": "skipped",
    r"whole (checkpoint|set|run|file|group|batch|rollout batch|softmax|model|image|response|path|benchmark)(e?s)?": (
        "complete, intact or full"
    ),
    r"the policy's own": "that the policy sampled",
    r"embedded (toy )?(model|task|weights|checkpoint|one)": "toy model, toy task",
    r"optimisers?": "optimizer",
    r"re-weight\w*": "reweight",
    r"the disk (refused|refuses)": "writing failed",
    # Inversions and turns of phrase
    r"(is|are|was|were|be|been) told(?! to)": "is reported",
    r"(tell|tells|told|telling) (\w+ ){0,4}apart": "distinguish",
    r"what (became|becomes|came|comes) of": "the outcome of, what happens to",
    r"what (the|a|an|its|each|his) \w+( \w+)? makes? of": "the output or result of",
    r"(go|goes|went|gone|going) on (with|from|although|without)": "continue or resume",
    r"(lie|lies|lay) (in|at|below|under|beside|outside|within|next|one)": "is in, is at",
    r"(stand|stands|stood) (at|in|beside|on|before|after|behind|there|twice|within|inside|where)": "is at, is in",
    r"of (ours|yours|theirs|the user's|the users')": "built-in, user-defined",
    r"no \w+ at all": "without, none",
    r"behind (the (last|final|decoder|prompt|end|response)|its last|each row|it\b|them\b)": "after",
    r"(has|have) not(?=[.,;:)\"]|$)": "does not have",
    r"(?<!there\s)(is|are|was|were) no (?!longer|more|less|other|better|worse|\w+er\b)\w+": "is not a",
    r"(is|are|was|were) none of": "is not one of, none of ... is",
    r"no (valid|utf-8) (json|text|yaml)": "not valid JSON, not UTF-8",
    r"(left|leave|leaves|stay|stays) as (it|they) (is|are|was|were)": "unchanged",
    r"as of (?=[`\"])": "see, from, as in",
    r"(every|first|at most|after) so many": "every N, the first N",
    r"(one|row|line|file|share|run|object|question) a (row|line|task|question)": "per row, per line",
    r"at hand": "current",
    r"at work": "running",
    r"(takes?|took) (no )?part": "is included or excluded",
    r"(puts?|putting) aside": "disable, save",
    r"lets? (it|them|\w+ weights?) go": "free",
    r"in the midst of": "during",
    r"(may|can|could|cannot) be had": "is available",
    r"(is|are) to be (had|said|told|mended|looked at)": "say it directly",
    r"(rollouts|tokens|options|prompts|samples|groups) an? (step|prompt|problem|question|generation|group)": "per",
    r"no gpu has run": "has not been run on a GPU",
    r"unlike (lengths|images|numbers|groups|rows)": "different",
    r"leaves open, and what holds": "Where ... leaves details open, this implementation defines",
    r"all the same(?=[;,.])": "anyway, still",
    r"all else": "everything else",
    r"for ever": "forever",
    # Archaic
    r"anew": "again, re-created",
    r"shall": "must, should or will",
    r"lest": "so that ... not",
    r"mend(s|ed|ing)?": "fix",
    r"(befall|befalls|befell|befallen)": "happen to",
    r"hopeless": "that would fail",
    r"amiss": "wrong",
    r"seldom": "rarely",
    r"in vain": "without a result",
    r"mere(ly)?": "only",
    r"(whilst|amongst|albeit|forthwith|henceforth|hitherto|heretofore|thereof|therein|thereby|whereof|wherein|whereby|"
    r"whence|thence|thither|unto|betwixt|nigh|naught|nought|oft|ere)": "the modern word",
}

# File, words that it may use, and why.
EXCEPTIONS = [
    ("tests/compatibility/*", ".*", "files of version 0.1"),
    ("src/vgpo/toy/*.py", "picture", "questions of the toy task, on which its tokenizer and weights are built"),
    ("src/vgpo/data/formats.py", "picture", "a prompt of MMMU-Pro"),
    ("src/vgpo/recipe/identity.py", "data set", "a key of run_identity.json"),
    ("benchmarks/fault_lab.py", "data set", "a key of run_identity.json"),
    ("benchmarks/*.py", "gold", "a key of files with known verdicts"),
    ("studies/results/*", ".*", "recorded results"),
    ("src/vgpo/*/templates/*", "whole response", "labels of pages"),
    ("docs/toy.md", "picture", "questions of the toy task"),
    ("docs/watch.md", "picture", "a question of the toy task"),
    ("docs/upgrading.md", ".*", "old names"),
    ("docs/evaluate.md", "gold", "a key of files with known verdicts"),
]

# Being rewritten elsewhere; remove a line when its files are done.
PENDING: list[str] = []


class Hit(NamedTuple):
    path: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word!r}: write {self.instead}"


@cache
def patterns() -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(rf"(?<!\w)(?:{word.replace(' ', BLANK)})(?!\w)", re.IGNORECASE | re.MULTILINE), instead)
        for word, instead in BANNED.items()
    ]


def prose_of(path: str, text: str) -> Iterator[tuple[int, str]]:
    """The text that people read, with its first line: of Python the comments and strings, of tests the docstrings."""
    if not path.endswith(".py"):
        yield 1, text
        return
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        begins_line = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        is_text = tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE")
        if token.type == tokenize.COMMENT or (is_text and (begins_line or not path.startswith("tests/"))):
            yield token.start[0], PLACEHOLDER.sub("{}", token.string) if is_text else token.string
        if token.type not in (tokenize.NL, tokenize.COMMENT, tokenize.ENCODING):
            before = token.type


def hits_of(path: str, text: str) -> list[Hit]:
    found = [
        Hit(path, line + prose.count("\n", 0, match.start()), " ".join(match.group().split()), instead)
        for line, prose in prose_of(path, text)
        for pattern, instead in patterns()
        for match in pattern.finditer(prose)
    ]
    return sorted(found, key=lambda hit: hit.line)


def is_allowed(hit: Hit) -> bool:
    return any(
        fnmatch(hit.path, files) and re.fullmatch(words, hit.word, re.IGNORECASE) for files, words, _ in EXCEPTIONS
    )


def read_files() -> Iterator[tuple[str, str]]:
    folders = [path for name in FOLDERS for path in sorted((ROOT / name).rglob("*"))]
    for path in [*sorted(ROOT.iterdir()), *folders]:
        if path.is_file() and (path.suffix in SUFFIXES or path.name in NAMES):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


@cache
def all_hits() -> list[Hit]:
    return [
        hit
        for path, text in read_files()
        if not any(fnmatch(path, files) for files in PENDING)
        for hit in hits_of(path, text)
    ]


def test_words() -> None:
    hits = [hit for hit in all_hits() if not is_allowed(hit)]
    assert not hits, f"{len(hits)} banned words:\n" + "\n".join(map(str, hits))


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("a picture of the grid", "picture"),
        ("the data\n    set in this folder", "data set"),
        ("expected one gold for each row", "gold"),
        ("so that it goes on from the newest checkpoint", "goes on from"),
        ("The reason lies in its mode.", "lies in"),
        ("a mark stands at its place", "stands at"),
        ("only rewards of ours", "of ours"),
        ("a warning without any row, or no row at all", "no row at all"),
        ("states behind the final norm", "behind the final"),
        ("the run has not.", "has not"),
        ("this is no regular file", "is no regular"),
        ("found no valid JSON", "no valid JSON"),
        ("every image is told once", "is told"),
        ("what a user can mend", "mend"),
        ("responses shall begin with a thought", "shall"),
        ("the newest whole checkpoint", "whole checkpoint"),
        ("what came of a run", "what came of"),
        ("one row a line", "row a line"),
        ("a cosine is no proof", "is no proof"),
        ("'X' is none of the options", "is none of"),
        ("8 rollouts a\n    step", "rollouts a step"),
        ("no GPU has run it", "no GPU has run"),
        ("the embedded model", "embedded model"),
        ("it is compared all the same.", "all the same"),
        ("the others wait for ever", "for ever"),
        ("and all else stays", "all else"),
        ("one optimiser step", "optimiser"),
        ("the tokens are re-weighted", "re-weighted"),
    ],
)
def test_a_banned_word_is_found(sentence: str, word: str) -> None:
    [hit] = hits_of("notes.md", f"First line.\n{sentence}")
    assert (hit.path, hit.line, hit.word) == ("notes.md", 2, word)
    assert str(hit).startswith(f"notes.md:2: {word!r}: write ")


@pytest.mark.parametrize(
    "sentence",
    [
        "an image of the dataset, a golden file, a setting",
        "VGPO stands for Visually-Guided Policy Optimization",
        "whole numbers, and the whole table",
        "there is no file of that name",
        "they are all the same size, and for every row",
        "this is no longer needed, and none of the rows is",
        "an embedded image, a token embedding",
        "is told to stop",
        "the code behind the API",
        "the run has not finished",
        "nothing is wrong with it; go on",
        "recommended, commended and amended",
        "three steps in a row",
    ],
)
def test_ordinary_words_pass(sentence: str) -> None:
    assert hits_of("notes.md", sentence) == []


def test_code_is_searched_in_comments_and_texts_alone() -> None:
    code = '''"""A picture."""
pictures = [f"no picture in {pictures}"]  # a picture
"""
Another
picture.
"""
'''
    assert [hit.line for hit in hits_of("src/a.py", code)] == [1, 2, 2, 5]
    assert [hit.line for hit in hits_of("tests/a.py", code)] == [1, 2, 5]  # texts of tests may be anything


def test_every_exception_is_needed() -> None:
    for files, words, reason in EXCEPTIONS:
        found = [
            hit for hit in all_hits() if fnmatch(hit.path, files) and re.fullmatch(words, hit.word, re.IGNORECASE)
        ]
        assert found or "0.1" in reason, reason


def test_files_that_are_pending_exist() -> None:
    paths = [path for path, _ in read_files()]
    assert [files for files in PENDING if not any(fnmatch(path, files) for path in paths)] == []
