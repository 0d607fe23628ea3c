"""The built-in corpus: deterministic, grammatical, distinct by domain, code that parses."""

import ast
import re
from collections import Counter
from math import log

import pytest

from asterism.core.corpus import read_corpus
from asterism.core.errors import SettingsError
from asterism.demo.corpus import DOMAINS, LEXICONS, build_corpus, write_corpus
from asterism.demo.grammar import article, finite, gerund, participle, plural, third_person
from asterism.demo.lexicon import Frame

PAIRS = {("medical", "legal"), ("medical", "code"), ("medical", "science"), ("legal", "code"), ("legal", "science"), ("code", "science")}
PYTHON = re.compile(r"(async def \w+\(|def \w+\(|class \w+:)")
SMALL = dict(train=70, heldout=20, cross=8)


@pytest.fixture(scope="module")
def corpus():
    return build_corpus(seed=3, **SMALL)


def words(text):
    return re.findall(r"[a-z]+", text.lower().replace("_", " "))


def all_texts(corpus):
    yield from (text for texts in corpus.train.values() for text in texts)
    yield from (probe.text for probes in corpus.heldout.values() for probe in probes)
    yield from (probe.text for probe in corpus.cross)


def test_same_seed_same_corpus_other_seed_other_texts(corpus):
    assert build_corpus(seed=3, **SMALL) == corpus
    other = build_corpus(seed=4, train=10, heldout=2, cross=2)
    assert not set(all_texts(corpus)) & set(all_texts(other))


def test_numbers_and_names(corpus):
    assert corpus.domains == DOMAINS
    assert {name: len(texts) for name, texts in corpus.train.items()} == dict.fromkeys((*DOMAINS, "general"), 70)
    assert {name: len(probes) for name, probes in corpus.heldout.items()} == dict.fromkeys((*DOMAINS, "general"), 20)
    assert Counter(probe.domains for probe in corpus.cross) == dict.fromkeys(PAIRS, 8)


def test_no_text_occurs_twice(corpus):
    texts = list(all_texts(corpus))
    assert len(texts) == 5 * 90 + 6 * 8
    assert len(set(texts)) == len(texts)


def test_texts_have_forty_to_ninety_words(corpus):
    lengths = [len(text.split()) for text in all_texts(corpus)]
    assert min(lengths) >= 40
    assert max(lengths) <= 90
    assert max(lengths) - min(lengths) > 30


def test_code_parses_and_is_documented(corpus):
    kinds = Counter()
    for text in corpus.train["code"]:
        for node in ast.parse(text).body:
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            assert ast.get_docstring(node)
            kinds[type(node).__name__] += 1
    assert set(kinds) == {"FunctionDef", "AsyncFunctionDef", "ClassDef"}


def test_each_domain_has_a_few_hundred_words_of_its_own(corpus):
    vocabularies = {name: {word for text in corpus.train[name] for word in words(text)} for name in corpus.train}
    for name, own in vocabularies.items():
        others = set().union(*(vocabularies[other] for other in vocabularies if other != name))
        assert len(own) > 300, name
        assert len(own - others) > 200, name


def test_held_out_texts_show_their_domain(corpus):
    """A unigram model of the training texts tells every held-out probe's domain: specialists have something to learn."""
    counts = {name: Counter(word for text in texts for word in words(text)) for name, texts in corpus.train.items()}

    def likelihood(text, name):
        return sum(log((counts[name][word] + 0.1) / counts[name].total()) for word in words(text))

    probes = [probe for probes in corpus.heldout.values() for probe in probes]
    right = [max(counts, key=lambda name: likelihood(probe.text, name)) == probe.domains[0] for probe in probes]
    assert len(right) == 100
    assert sum(right) >= 99


def test_cross_probes_mix_both_domains_in_one_passage(corpus):
    marks = {name: [noun for noun in lexicon.words() if len(noun) > 3] for name, lexicon in LEXICONS.items()}
    for probe in corpus.cross:
        for domain in probe.domains:
            if domain == "code" and PYTHON.match(probe.text):
                ast.parse(probe.text)
                continue
            found = [noun for noun in marks[domain] if re.search(rf"\b{noun}|\b{plural(noun)}", probe.text)]
            assert len(found) >= 2, (probe.id, domain, probe.text)


def test_half_of_the_code_pairs_is_python_about_the_other_domain(corpus):
    texts = [probe.text for probe in corpus.cross if "code" in probe.domains]
    python = [text for text in texts if PYTHON.match(text)]
    assert len(texts) == 24
    assert 5 <= len(python) <= 19


def test_articles_fit_the_following_sound(corpus):
    met = Counter()
    for text in all_texts(corpus):
        for found, following in re.findall(r"\b([Aa]n?) ([A-Za-z][\w-]*)", text):
            if following in ("is", "as"):
                continue
            vowel = re.match(r"[aeioAEIO](?!ne\b)|[Uu](?!ni|se|su)|unim|MRI|X-|hour|hon", following)
            assert found.lower() == ("an" if vowel else "a"), f"{found} {following}: {text}"
            met[found.lower()] += 1
    assert min(met["a"], met["an"]) > 50


def test_verbs_agree_with_their_nouns(corpus):
    singular = {noun.word for lexicon in LEXICONS.values() for nouns in lexicon.kinds.values() for noun in nouns}
    many = {plural(word) for word in singular} - singular
    met = Counter()
    for text in all_texts(corpus):
        for noun, verb in re.findall(r"(?<!to )(?<!of )\b[Tt]he (\w+) (is|was|are|were)\b", text):
            if noun in many:
                assert verb in ("are", "were"), f"{noun} {verb}: {text}"
                met["many"] += 1
            elif noun in singular and plural(noun) != noun:
                assert verb in ("is", "was"), f"{noun} {verb}: {text}"
                met["one"] += 1
    assert min(met["many"], met["one"]) > 5


def test_sentences_begin_large_and_end_with_a_mark(corpus):
    for name in ("medical", "legal", "science", "general"):
        for text in corpus.train[name]:
            for paragraph in text.split("\n\n"):
                assert re.match(r"[A-Z]", paragraph)
                assert re.search(r"[.?]$", paragraph)
                assert not re.search(r"  |\.\.|[<>{}|]| ,|\b(\w+) \1\b", paragraph.replace("had had", "")), paragraph


def test_files_are_read_back_and_equal_bytes_are_written(tmp_path):
    corpus = build_corpus(seed=5, train=8, heldout=3, cross=2)
    write_corpus(tmp_path / "a", seed=5, train=8, heldout=3, cross=2)
    write_corpus(tmp_path / "b", seed=5, train=8, heldout=3, cross=2)
    again = read_corpus(tmp_path / "a")
    assert again.train == corpus.train
    assert again.heldout == corpus.heldout
    assert sorted(again.cross, key=lambda probe: probe.id) == sorted(corpus.cross, key=lambda probe: probe.id)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 16
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_a_negative_number_is_refused():
    with pytest.raises(SettingsError, match=r"corpus\.train is a number of texts\.\n  met:  -1\n  mend: 0 or more"):
        build_corpus(train=-1)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (plural("diagnosis"), "diagnoses"),
        (plural("blood test"), "blood tests"),
        (plural("allergy"), "allergies"),
        (plural("child"), "children"),
        (plural("virus"), "viruses"),
        (plural("x-ray"), "x-rays"),
        (article("X-ray"), "an"),
        (article("unit test"), "a"),
        (article("unused index"), "an"),
        (article("honest man"), "an"),
        (third_person("apply"), "applies"),
        (third_person("undergo"), "undergoes"),
        (participle("admit"), "admitted"),
        (gerund("begin"), "beginning"),
        (gerund("agree"), "agreeing"),
        (finite("be", "past", True), "were"),
        (finite("give", "perfect", False), "has given"),
        (finite("give", "may", True), "may give"),
    ],
)
def test_word_forms(got, want):
    assert got == want


def test_a_clause_is_read_from_its_line():
    assert Frame.parse("clinician give drug to patient") == Frame("clinician", "give", "drug", (("to", "patient"),))
    assert Frame.parse("patient suffer from condition") == Frame("patient", "suffer", None, (("from", "condition"),))
