"""Chat templates: those that a recipe may ask for by name, under mergekit's names, each the published format of its model family."""

from __future__ import annotations

from asterism.core.errors import SettingsError

TEMPLATES = {
    "alpaca": (
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ m.content }}\n\n"
        "{% elif m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
        "{% elif m.role == 'assistant' %}### Response:\n{{ m.content }}{{ eos_token }}\n\n{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "exaone": (
        "{% for m in messages %}"
        "{% if loop.first and m.role != 'system' %}[|system|][|endofturn|]\n{% endif %}"
        "[|{{ m.role }}|]{{ m.content }}{% if m.role == 'user' %}\n{% else %}[|endofturn|]\n{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}[|assistant|]{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}"
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}"
        "{% set ns = namespace(system='') %}"
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
        "{% elif m.role == 'user' %}[INST] {{ ns.system }}{{ m.content }} [/INST]{% set ns.system = '' %}"
        "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    ),
}


def check_template(text: str) -> None:
    """SettingsError, with the line, for a text that Jinja cannot read as transformers has it: loop controls, and `generation` blocks."""
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        Environment(extensions=["jinja2.ext.loopcontrols", Generation]).compile(text)
    except TemplateSyntaxError as error:
        line = "".join(text.splitlines()[error.lineno - 1 : error.lineno]).strip()
        mend = "mend that line; a template can be tried with tokenizer.apply_chat_template"
        raise SettingsError("chat_template is not Jinja.", met=f"line {error.lineno}, {line[:80]!r}: {error.message}", mend=mend) from None
