"""Hypothesis strategies for every kind of recipe that a file can hold."""

from hypothesis import strategies as st

from evomerge.recipe import (
    Case,
    Module,
    Pieces,
    Recipe,
    Route,
    Scope,
    Slice,
    Slot,
    Source,
    Tokenizer,
    TokenRule,
)


def is_word(text):
    """Whether text stays text when it is read as a parameter's value."""
    try:
        float(text)
    except ValueError:
        return True
    return False


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
WORDS = TEXT.filter(is_word)
NAMES = st.sampled_from(["a", "b", "org/c@main", "a+adapter", "../d e", "日本"]) | TEXT
NUMBERS = st.floats(-1e6, 1e6) | st.integers(-(2**62), 2**62)
SCALARS = NUMBERS | st.booleans() | WORDS
VALUES = SCALARS | st.lists(SCALARS, max_size=3).map(tuple)
CASES = st.builds(Case, st.none() | TEXT, VALUES)
SETTINGS = VALUES | st.lists(CASES, max_size=3).map(tuple)
PARAMETERS = st.dictionaries(TEXT, SETTINGS, max_size=2)
FLOATS = st.floats(-9, 9)


def several(strategy, most=3):
    return st.lists(strategy, min_size=1, max_size=most).map(tuple)


def slices(models):
    def of_length(n):
        ranges = st.integers(0, 40).map(lambda first: (first, first + n))
        sources = several(st.builds(Source, models, PARAMETERS, ranges), 2)
        return st.builds(Slice, sources, st.none() | models, PARAMETERS)

    return several(st.integers(1, 9).flatmap(of_length), 2)


def sources(models):
    return several(st.builds(Source, models, PARAMETERS))


RULES = (
    st.builds(TokenRule, st.sampled_from(["default", "zero"]), force=st.booleans())
    | st.builds(TokenRule, st.just("model"), NAMES, force=st.booleans())
    | st.builds(TokenRule, st.just("model_token"), NAMES, token=TEXT, force=st.booleans())
    | st.builds(TokenRule, st.just("model_token"), NAMES, token_id=st.integers(0, 9))
)
TOKENIZERS = st.builds(
    Tokenizer,
    st.sampled_from(["base", "union"]) | NAMES,
    st.dictionaries(TEXT, RULES, max_size=2),
    st.none() | st.integers(1, 128),
)


@st.composite
def routes(draw, models):
    identities = st.builds(Slot, st.none(), scale=FLOATS)
    blocks = st.builds(Slot, models, st.integers(0, 99), FLOATS)
    slots = [*draw(st.lists(blocks | identities, max_size=3)), draw(blocks)]
    depth = draw(st.none() | st.integers(len(slots), 99))
    return Route(tuple(slots), draw(st.sampled_from(["block_output", "stream"])), depth)


@st.composite
def pieces(draw, count):
    breakpoints = tuple(sorted(draw(st.sets(st.integers(1, 10**12), min_size=1, max_size=3))))
    row = st.tuples(*[FLOATS] * count)
    return Pieces(breakpoints, tuple(draw(row) for _ in breakpoints))


@st.composite
def recipes(draw, models=NAMES, extended=True):
    """A recipe; without extensions it is one that mergekit's format can say."""
    kinds = ["models", "slices", "modules"] + (["route", "pieces"] if extended else [])
    kind = draw(st.sampled_from(kinds))
    parts = {"method": draw(TEXT.filter(lambda name: name != "pieces"))}
    if kind in ("models", "pieces"):
        parts["sources"] = draw(sources(models))
    elif kind == "slices":
        parts["slices"] = draw(slices(models))
    elif kind == "modules":
        module = st.builds(Module, sources(models), parameters=PARAMETERS)
        module |= st.builds(Module, slices=slices(models), parameters=PARAMETERS)
        parts["modules"] = draw(st.dictionaries(TEXT, module, min_size=1, max_size=2))
    else:
        parts |= {"method": "passthrough", "route": draw(routes(models))}
    if kind == "pieces":
        parts |= {"method": "pieces", "pieces": draw(pieces(len(parts["sources"])))}
    return Recipe(
        **parts,
        base=draw(st.none() | models),
        parameters=draw(PARAMETERS),
        dtype=draw(st.sampled_from([None, "float32", "bfloat16", "float16"])),
        tokenizer=draw(st.none() | TOKENIZERS),
        chat_template=draw(st.none() | TEXT),
        scope=draw(st.none() | st.builds(Scope, TEXT, st.none() | NAMES)) if extended else None,
    )


PLAIN = recipes(extended=False)
ALL = recipes() | recipes(NAMES | recipes())
