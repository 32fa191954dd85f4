"""Word pieces of every kind read as the text that they were made of."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from trained_tokenizers import CORPUS, KINDS, byte_bpe, sentencepiece, wordpiece

from lxt_compose.heatmap import guess_scheme, pieces_of, scheme_of, words_of


def read(pieces):
    """The pieces written down one after another; marks of line breaks stand for nothing themselves."""
    text = ""
    for piece in pieces:
        text += "\n" * piece.lines + (" " if piece.space and not piece.lines else "")
        text += "" if set(piece.text) <= {"⏎"} else piece.text
    return text


def test_wordpiece():
    tokens = "[CLS] the un ##bel ##iev ##able film wasn ' t ( at all ) bor ##ing , c ##' ## [SEP] [PAD]".split()
    pieces = pieces_of(tokens)
    assert read(pieces) == "[CLS] the unbelievable film wasn't (at all) boring, c'## [SEP] [PAD]"
    assert [piece.text for piece in pieces if piece.special] == ["[CLS]", "[SEP]", "[PAD]"]
    assert [word.tokens for word in words_of(pieces)[2:4]] == [(2, 3, 4, 5), (6,)]


def test_byte_level():
    tokens = [
        "The",
        "Ġquick",
        "Ġfox",
        "es",
        "Ċ",
        "Ċ",
        "O",
        "ver",
        "ĠâĢ",
        "ľ",
        "ðŁ",
        "Ĳ",
        "¶",
        "!",
        "Ġ",
        "Ġx",
        "<|endoftext|>",
    ]
    pieces = pieces_of(tokens)
    assert read(pieces) == "The quick foxes\n\nOver “🐶!  x <|endoftext|>"
    assert [piece.tokens for piece in pieces if len(piece.tokens) > 1] == [(8, 9), (10, 11, 12)]
    assert pieces[-1].special
    words = words_of(pieces)
    assert [word.text for word in words if 12 in word.tokens or 13 in word.tokens] == ["“🐶!"]
    assert [(piece.text, piece.blank, piece.label) for piece in pieces if piece.tokens == (14,)] == [(" ", True, "␣")]


def test_spaces_with_a_token_of_their_own():
    tokens = ["the", "Ġ", "q", "uick", "ĠĠĠ", "fox", "Ġ"]
    pieces = pieces_of(tokens)
    assert read(pieces) == "the quick   fox "
    assert [word.text for word in words_of(pieces)] == ["the", "quick", "fox", " "]
    assert [word.tokens for word in words_of(pieces)] == [(0,), (1, 2, 3), (4, 5), (6,)]


def test_sentencepiece():
    tokens = [
        "<s>",
        "▁Die",
        "▁Donau",
        "dampf",
        "▁ist",
        "▁gro",
        "ß",
        ".",
        "<0x0A>",
        "<0xF0>",
        "<0x9F>",
        "<0x98>",
        "<0x80>",
        "▁",
        "</s>",
    ]
    pieces = pieces_of(tokens)
    assert read(pieces) == "<s> Die Donaudampf ist groß.\n😀  </s>"
    assert [word.text for word in words_of(pieces)][:5] == ["<s>", "Die", "Donaudampf", "ist", "groß.⏎"]
    assert next(piece for piece in pieces if piece.text == "😀").tokens == (9, 10, 11, 12)


def test_suffixes():
    tokens = ["the</w>", "un", "believ", "able</w>", "film</w>", "!</w>"]
    assert read(pieces_of(tokens)) == "the unbelievable film !"


def test_words():
    tokens = ["The", "film", "<b>", "was", "[sic]", "great", ""]
    pieces = pieces_of(tokens)
    assert read(pieces) == "The film <b> was [sic] great "
    assert not any(piece.special for piece in pieces)


def test_bytes_that_are_no_text():
    """Half a character at the end, and bytes that never are one, are shown as such, and eat nothing that follows."""
    pieces = pieces_of(["ðŁ", "Ĳ", "Ġend", "ðŁ"], scheme="bytes")
    assert [piece.tokens for piece in pieces] == [(0, 1, 2), (3,)]
    assert pieces[0].text.endswith("end")
    assert "\ufffd" in pieces[1].text
    assert [piece.tokens for piece in pieces_of(["<0xFF>", "▁a", "<0xC3>", "<s>", "b"])] == [
        (0,),
        (1,),
        (2,),
        (3,),
        (4,),
    ]


@pytest.mark.parametrize(
    ("tokens", "scheme"),
    [
        (["▁a", "##b"], "sentencepiece"), (["Ġa", "##b"], "bytes"), (["a", "##b"], "wordpiece"), (["a", "##"], "words"),
        (["a</w>"], "suffix"), (["a", "b"], "words"), (["Ċ"], "bytes"), ([], "words"),
    ],
)  # fmt: skip
def test_guess(tokens, scheme):
    assert guess_scheme(tokens) == scheme


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_tells(kind):
    assert scheme_of(KINDS[kind]()) == kind
    transformers = pytest.importorskip("transformers")
    assert scheme_of(transformers.PreTrainedTokenizerFast(tokenizer_object=KINDS[kind]())) == kind


def test_no_tokenizer_tells_nothing():
    assert scheme_of(object()) is None
    with pytest.raises(ValueError, match="scheme must be one of words, wordpiece, bytes, sentencepiece, suffix"):
        pieces_of(["a"], scheme="bpe")


@pytest.mark.parametrize("line", CORPUS[:5])
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_a_text_comes_back(kind, line):
    tokens = KINDS[kind]().encode(line).tokens
    assert read(pieces_of(tokens)).strip() == line
    assert sorted(n for piece in pieces_of(tokens) for n in piece.tokens) == list(range(len(tokens)))


def test_what_wordpiece_kept_comes_back():
    line = CORPUS[0]
    assert read(pieces_of(wordpiece().encode(line).tokens)) == f"[CLS] {line} [SEP]"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]) | st.sampled_from(" \n🐶é日\u0301"),
        max_size=30,
    )
)
def test_any_text_comes_back(text):
    """Every character of any text is in some piece, in order; every token is in exactly one."""
    for tokenizer in (byte_bpe(), sentencepiece()):
        tokens = tokenizer.encode(text).tokens
        scheme = scheme_of(tokenizer)
        pieces = pieces_of(tokens, scheme=scheme)
        assert [n for piece in pieces for n in piece.tokens] == list(range(len(tokens)))
        shown = "".join(piece.text for piece in pieces).replace("⏎", "")
        expected = text.replace("▁", " ") if scheme == "sentencepiece" else text
        assert shown.replace(" ", "") == expected.replace(" ", "").replace("\n", "")
        words = words_of(pieces)
        assert re.sub(" +", " ", read(words)).strip() == re.sub(" +", " ", read(pieces)).strip()
        assert [n for word in words for n in word.tokens] == list(range(len(tokens)))
