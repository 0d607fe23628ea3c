"""Python functions with plausible names, docstrings and comments; each parses. The comments are sentences of a given passage."""

from __future__ import annotations

import random
import re
import textwrap
from collections.abc import Mapping

from asterism.demo.grammar import article, plural
from asterism.demo.patterns import write_sentence
from asterism.demo.prose import Passage

# In a shape: {item} a thing, {items} several, {number} and {other} its numeric attributes, {text} a text attribute, {series} a run of
# numbers, {an_item} with its article, {low} < {high} numbers, {more} further docstring sentences, {comment} a comment line or nothing,
# <a|b> a choice.
SHAPES = tuple(
    shape.strip("\n")
    for shape in (
        '''
def <select|filter|keep>_{items}({items}, minimum_{number}):
    """Return the {items} whose {number} is at least the minimum.{more}"""
    {comment}
    return [{item} for {item} in {items} if {item}.{number} >= minimum_{number}]
''',
        '''
def total_{number}({items}):
    """<Add up|Sum> the {number} of all {items}.{more}"""
    total = 0
    {comment}
    for {item} in {items}:
        total += {item}["{number}"]
    return total
''',
        '''
def <mean|average>_{number}({items}):
    """Return the mean {number}, or zero without {items}.{more}"""
    if not {items}:
        return 0.0
    {comment}
    return sum({item}.{number} for {item} in {items}) / len({items})
''',
        '''
def group_{items}_by_{text}({items}):
    """Map each {text} to the list of its {items}.{more}"""
    groups = {{}}
    for {item} in {items}:
        {comment}
        groups.setdefault({item}.{text}, []).append({item})
    return groups
''',
        '''
def <top|best|largest>_{items}({items}, limit={low}):
    """Return the {items} with the largest {number}, largest first.{more}"""
    {comment}
    ranked = sorted({items}, key=lambda {item}: {item}.{number}, reverse=True)
    return ranked[:limit]
''',
        '''
def count_by_{text}({items}):
    """Count the {items} of each {text}.{more}"""
    counts = {{}}
    for {item} in {items}:
        key = {item}["{text}"]
        counts[key] = counts.get(key, 0) + 1
    {comment}
    return counts
''',
        '''
def <find|look_up|get>_{item}({items}, identifier):
    """Find one {item} by its identifier.{more}"""
    for {item} in {items}:
        if {item}.identifier == identifier:
            return {item}
    {comment}
    raise KeyError(f"no {item} with identifier {{identifier}}")
''',
        '''
def parse_{item}(line):
    """Read {an_item} from a line of comma-separated text.{more}"""
    {text}, {number} = line.strip().split(",")
    {comment}
    return {{"{text}": {text}, "{number}": float({number})}}
''',
        '''
def <load|read>_{items}(path):
    """Read all {items} from a JSON file.{more}"""
    import json

    {comment}
    with open(path, encoding="utf-8") as handle:
        return json.load(handle)["{items}"]
''',
        '''
def <save|write>_{items}({items}, path):
    """Write one line for every {item}.{more}"""
    with open(path, "w", encoding="utf-8") as handle:
        for {item} in {items}:
            {comment}
            handle.write(f"{{{item}.{text}}},{{{item}.{number}}}\\n")
''',
        '''
def normalise_{series}({series}):
    """Scale the {series} so that they lie between zero and one.{more}"""
    lowest, highest = min({series}), max({series})
    if lowest == highest:
        return [0.0 for _ in {series}]
    {comment}
    return [(value - lowest) / (highest - lowest) for value in {series}]
''',
        '''
def running_<maximum|peak>({series}):
    """Yield the largest of the {series} seen so far.{more}"""
    largest = None
    for value in {series}:
        {comment}
        if largest is None or value > largest:
            largest = value
        yield largest
''',
        '''
def search_{series}({series}, target):
    """Find the target in sorted {series} by halving the range.{more}"""
    low, high = 0, len({series}) - 1
    while low <= high:
        middle = (low + high) // 2
        if {series}[middle] == target:
            return middle
        {comment}
        if {series}[middle] < target:
            low = middle + 1
        else:
            high = middle - 1
    return -1
''',
        '''
def unique_{items}({items}):
    """Drop {items} whose {text} was seen before.{more}"""
    seen = set()
    kept = []
    for {item} in {items}:
        if {item}.{text} not in seen:
            {comment}
            seen.add({item}.{text})
            kept.append({item})
    return kept
''',
        '''
def batches_of_{items}({items}, size={low}):
    """Yield the {items} in batches of at most the given size.{more}"""
    {comment}
    for start in range(0, len({items}), size):
        yield {items}[start : start + size]
''',
        '''
class {Item}:
    """{An_item} with its {text} and its {number}.{more}"""

    def __init__(self, {text}, {number}={low}):
        self.{text} = {text}
        self.{number} = {number}

    def <increase|raise|add_to>_{number}(self, amount):
        {comment}
        self.{number} += amount
        return self
''',
        '''
class {Item}Queue:
    """Hold {items} until somebody asks for the next one.{more}"""

    def __init__(self):
        self._waiting = []

    def push(self, {item}):
        {comment}
        self._waiting.append({item})

    def pop(self):
        return self._waiting.pop(0) if self._waiting else None
''',
        '''
def depth_of_{item}_tree(node):
    """Return the depth of a tree of {items}, counted from its root.{more}"""
    if node is None:
        return 0
    {comment}
    return 1 + max(depth_of_{item}_tree(node.left), depth_of_{item}_tree(node.right))
''',
        '''
def <validate|check>_{item}({item}):
    """Raise ValueError unless the {number} is <positive|allowed|sensible>.{more}"""
    {comment}
    if not {low} <= {item}.{number} <= {high}:
        raise ValueError(f"{number} out of range: {{{item}.{number}}}")
    return {item}
''',
        '''
def <describe|format>_{item}({item}):
    """Return one readable line about the {item}.{more}"""
    {comment}
    return f"{{{item}.{text}}}: {{{item}.{number}:.2f}} ({{{item}.{other}}})"
''',
        '''
def moving_average({series}, window={low}):
    """Smooth the {series} with a sliding window.{more}"""
    {comment}
    for index in range(window, len({series}) + 1):
        yield sum({series}[index - window : index]) / window
''',
        '''
def compare_{items}(before, after):
    """Return the {items} that were added and those that were removed.{more}"""
    old, new = set(before), set(after)
    {comment}
    return sorted(new - old), sorted(old - new)
''',
        '''
def histogram_of_{series}({series}, width={high}):
    """Count how many {series} fall into each bin of the given width.{more}"""
    from collections import Counter

    {comment}
    return Counter(int(value // width) for value in {series})
''',
        '''
def clamp_{number}({number}, low={low}, high={high}):
    """Keep the {number} between two limits.{more}"""
    {comment}
    return max(low, min(high, {number}))
''',
        '''
def test_{number}_is_<kept|updated>():
    """The {number} of {an_item} <must|should> survive <a copy|an update>.{more}"""
    {item} = {{"{text}": "first", "{number}": {low}}}
    {comment}
    {item}.update({number}={high})
    assert {item}["{number}"] == {high}
    assert {item}["{text}"] == "first"
''',
        '''
def safe_{number}(text):
    """Turn text into {number}, or None where it is not a number.{more}"""
    try:
        return float(text)
    except ValueError:
        {comment}
        return None
''',
        '''
def update_{number}({item}, change, limit={high}):
    """Change the {number} of {an_item} and return the new value.{more}"""
    {comment}
    {item}.{number} = min({item}.{number} + change, limit)
    if {item}.{number} < 0:
        {item}.{number} = 0
    return {item}.{number}
''',
        '''
def {number}_per_{text}({items}):
    """Return the sum of {number} for every {text}.{more}"""
    from collections import defaultdict

    sums = defaultdict(float)
    for {item} in {items}:
        {comment}
        sums[{item}.{text}] += {item}.{number}
    return dict(sums)
''',
        '''
def retry_{item}(action, {item}, attempts={low}):
    """Call the action until it succeeds for the {item}.{more}"""
    for attempt in range(attempts):
        try:
            return action({item})
        except OSError:
            {comment}
            continue
    raise RuntimeError("all attempts failed")
''',
        '''
async def fetch_{items}(client, {text}):
    """Fetch the {items} of one {text} from the server.{more}"""
    {comment}
    response = await client.get("/{items}", params={{"{text}": {text}}})
    return [{item} for {item} in response if {item}["{number}"] > {low}]
''',
    )
)
_SUMMARY = re.compile(r'""".*?\{more\}')
_INDENTED = re.compile(r"^( *)\{comment\}\n", re.MULTILINE)
_CHOICE = re.compile(r"<(\w[\w ]*(?:\|[\w ]+)+)>")


def write_function(rng: random.Random, names: Mapping[str, str], passage: Passage, shape: str, talk: float) -> str:
    """One function or class of `shape`; `talk` is the chance of each further docstring sentence and of each comment."""
    item, text = rng.choice(names["items"].split()), rng.choice(names["texts"].split())
    number, other = rng.sample(names["numbers"].split(), 2)
    low = rng.randint(2, 20)
    thing = item.replace("_", " ")
    things = plural(thing)
    values = dict(item=item, items=things.replace(" ", "_"), Item=thing.title().replace(" ", ""), an_item=f"{article(thing)} {thing}")
    values |= dict(An_item=values["an_item"].capitalize(), text=text if text != item else "label", number=number, other=other)
    values |= dict(series=rng.choice(names["series"].split()), low=str(low), high=str(low + rng.randint(1, 80)))
    words = {name: value.replace("_", " ") for name, value in values.items()}
    shape = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), shape)
    shape = _SUMMARY.sub(lambda match: match[0].format_map({**words, "more": "{more}"}), shape)
    shape = _INDENTED.sub(lambda match: _comment(passage, match[1]) if rng.random() < talk else "", shape)
    return shape.format_map({**values, "more": _more(passage) if rng.random() < talk else ""})


def _comment(passage: Passage, indent: str) -> str:
    words = passage.clause()
    return "".join(f"{indent}# {line}\n" for line in textwrap.wrap(words, 76 - len(indent)))


def _more(passage: Passage) -> str:
    indent, passage.begun = "    ", False
    lines = textwrap.wrap(write_sentence(passage), 84 - len(indent))
    return "\n\n" + "\n".join(indent + line for line in lines) + "\n" + indent
