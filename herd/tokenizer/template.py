"""The dialog codec as a Jinja chat template, for everything that renders dialogs without herd.

    layout  --chat_template-->  Jinja text  --transformers, vLLM, llama.cpp or herd.tokenizer.rendering-->  prompt

The template is made for one layout, so it holds only the branches that the layout needs. Every tag opens with `{%-`
and every expression with `{{-`: the white space between them is never output, however the renderer trims blocks.
"""

import json
from string import Template

from herd.tokenizer import specials
from herd.tokenizer.layout import Layout
from herd.tokenizer.tool_dialects import BUILTINS, CODE, CallStyle
from herd.tokenizer.tool_prompts import wording

_PYTHON_VALUE = r"""
{%- macro python(value) %}
    {%- if value is none %}{{- "None" }}
    {%- elif value is boolean %}{{- "True" if value else "False" }}
    {%- elif value is mapping %}
        {{- "{" }}
        {%- for key, item in value.items() %}
            {{- ("" if loop.first else ", ") ~ (key | tojson) ~ ": " }}{{- python(item) }}
        {%- endfor %}
        {{- "}" }}
    {%- elif value is string or value is number %}{{- value | tojson }}
    {%- else %}
        {{- "[" }}
        {%- for item in value %}{{- "" if loop.first else ", " }}{{- python(item) }}{%- endfor %}
        {{- "]" }}
    {%- endif %}
{%- endmacro %}"""

_START = r"""{{- bos_token }}
{%- set ns = namespace(opening="", told="", tools=[], builtins=[], calls=[], queries=0, json=false) %}"""

_READ_TOOLS = r"""
{%- for entry in tools or [] %}
    {%- set tool = entry["function"] if entry["function"] is mapping else entry %}
    {%- set tool = {
        "name": tool["name"],
        "description": tool["description"] or "",
        "parameters": tool["parameters"] or {},
    } %}
    {%- if tool["name"] in $BUILTINS %}
        {%- set ns.builtins = ns.builtins + [tool["name"]] %}
    {%- endif %}
    {%- if $TOLD_OF %}
        {%- set ns.tools = ns.tools + [tool] %}
    {%- endif %}
{%- endfor %}"""

_TELL = r"""
{%- for tool in ns.tools %}
    {%- set ns.told = ns.told ~ ("" if loop.first else $BETWEEN) ~ $DESCRIBED %}
{%- endfor %}"""
_TELL_ALL = r"""
{%- set ns.told = ns.tools | tojson(indent=4) if ns.tools else "" %}"""
_FRAME = r"""
{%- if ns.told %}
    {%- set ns.told = $BEFORE
        ~ ns.told
        ~ $AFTER %}
{%- endif %}"""

_ENVIRONMENT = r"""
{%- if tools %}{%- set ns.opening = "Environment: ipython" %}{%- endif %}"""
_BUILTIN_LINE = r"""
{%- if ns.builtins %}
    {%- set ns.opening = ns.opening ~ ("\n" if ns.opening else "") ~ "Tools: " ~ (ns.builtins | join(", ")) %}
{%- endif %}"""
_DATES = r"""
{%- set ns.opening = ns.opening ~ ($BLANK if ns.opening else "") ~ $CUTOFF ~ (date_string or $TODAY) %}"""
_TOLD_IN_SYSTEM = r"""
{%- if ns.told %}{%- set ns.opening = ns.opening ~ ("\n\n" if ns.opening else "") ~ ns.told %}{%- endif %}"""
_SYSTEM_WITHOUT_MESSAGE = r"""
{%- if ns.opening and not (messages and messages[0]["role"] == "system") %}
    {{- "<|start_header_id|>system<|end_header_id|>\n\n" ~ ns.opening ~ "$CLOSING<|eot_id|>" }}
{%- endif %}"""

_MESSAGE = r"""
{%- for message in messages %}
    {%- set role = "ipython" if message["role"] == "tool" else message["role"] %}
    {%- set content = message["content"] or "" %}
    {%- if role not in ["system", "user", "assistant", "ipython"] %}
        {{- raise_exception("message role " ~ role ~ " is not one of system, user, assistant, tool") }}
    {%- endif %}
    {%- if role == "ipython" $QUOTED %}{%- set content = content | tojson %}
    {%- elif content is not string %}{{- raise_exception("message content must be text") }}
    {%- endif %}"""
_SYSTEM_OPENING = r"""
    {%- if loop.first and role == "system" and ns.opening %}
        {%- set content = ns.opening ~ ("\n\n" ~ content if content else "$CLOSING") %}
    {%- endif %}"""
_USER_OPENING = r"""
    {%- if role == "user" and ns.told %}
        {%- set content = ns.told ~ "\n\n" ~ content %}
        {%- set ns.told = "" %}
    {%- endif %}"""
_CALLS = r"""
    {{- "<|start_header_id|>" ~ role ~ "<|end_header_id|>\n\n" ~ content }}
    {%- if message["tool_calls"] %}
        {%- if role != "assistant" %}{{- raise_exception("only an assistant can call tools") }}{%- endif %}
        {%- set ns.calls = [] %}
        {%- set ns.queries = 0 %}
        {%- set ns.json = false %}
        {%- for entry in message["tool_calls"] %}
            {%- set call = entry["function"] if entry["function"] is mapping else entry %}
            {%- set given = call["arguments"] or {} %}
            {%- set only = given | list if given is mapping else [] %}
            {%- set query = given["query"] if call["name"] in $BUILTINS and only == ["query"] else none %}
            {%- if query is string %}
                {%- set ns.queries = ns.queries + 1 %}
                {%- set ns.json = ns.json or '"' in query %}
            {%- endif %}$UNWRITABLE
            {%- set ns.calls = ns.calls + [{"name": call["name"], "given": given, "query": query, "only": only}] %}
        {%- endfor %}$MIXED
        {%- set first = ns.calls[0] %}
        {%- set code = first["given"]["code"] if first["name"] == $CODE and first["only"] == ["code"] else none %}
        {%- if code is string and ns.calls | length == 1 %}
            {{- "<|python_tag|>" ~ code }}
        {%- else %}
            $TAG$WRITTEN
        {%- endif %}
    {%- endif %}
    {{- $CALL_END if message["tool_calls"] else "<|eot_id|>" }}
{%- endfor %}"""

_EACH_CALL = r"""{%- for call in ns.calls %}
                {{- "" if loop.first else "; " }}
                {%- if call["query"] is string and not ns.json %}
                    {{- call["name"] ~ '.call(query="' ~ call["query"] ~ '")' }}
                $OTHERWISE
                {%- endif %}
            {%- endfor %}"""
_JSON_CALL = (
    "\n" + " " * 20 + r"""{{- $START ~ (call["name"] | $TOJSON) ~ ', "parameters": ' """
    r"""~ (call["given"] if call["given"] is string else call["given"] | $TOJSON) ~ "}" }}"""
)
_TAG_CALL = (
    "\n" + " " * 20 + r"""{{- "<function=" ~ call["name"] ~ ">" """
    r"""~ (call["given"] if call["given"] is string else call["given"] | $TOJSON) ~ "</function>" }}"""
)
_PYTHON_CALLS = r"""{%- if ns.json or ns.queries %}
            $EACH_CALL
            {%- else %}
            {{- "[" }}
            {%- for call in ns.calls %}
                {{- ("" if loop.first else ", ") ~ call["name"] ~ "(" }}
                {%- for key, value in call["given"].items() %}
                    {{- ("" if loop.first else ", ") ~ key ~ "=" }}{{- python(value) }}
                {%- endfor %}
                {{- ")" }}
            {%- endfor %}
            {{- "]" }}
            {%- endif %}"""

_TOLD_NOBODY = r"""
{%- if ns.told %}{{- raise_exception("there are tools but no user message for them") }}{%- endif %}"""
_END = r"""
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>$NEWLINES" }}{%- endif %}"""


def chat_template(layout: Layout) -> str:
    """Return the Jinja template that renders exactly the text of `DialogCodec(tokenizer, layout)`.

    Its variables: `messages` and `tools` in the OpenAI form (calls and tools with or without their "function"
    wrapper; the arguments of a call an object, or a JSON string, which is passed through), `add_generation_prompt`,
    `bos_token`, and `date_string`, which takes the place of today's date in `layout.dates`. `layout.reading` is of
    no account: a template writes only.

    Two things need a parser, which a template hasn't got. It can't see that text won't read back, where the codec
    then writes JSON instead: code that is itself a whole call, a name that a dialect has no way to write (a Python
    list: `get-time`, or an argument named `class` or `my key`; a function tag: a name with white space, quotes or
    brackets). A built-in's query that holds a quotation mark, a Python list beside built-ins and arguments that
    are a JSON string it does see, and writes as JSON. And it can't keep content that spells a control token apart
    from one, nor newlines at the start of content apart from those of the header: the text is the same, but a
    tokenizer that gets it whole gives other ids. `rendering.rendered_ids` gives the codec's.
    """
    style, told = layout.calls, layout.tool_prompt != "none"
    in_system = told and layout.tools_in == "system"
    full = layout.tool_prompt == "full"
    opened = full or in_system or layout.dates is not None
    closing = r"\n\n" if layout.opening == "template" else ""
    parts = [
        _PYTHON_VALUE if style.dialect == "python_list" else "",
        _START,
        _tools(layout) if told else "",
        _ENVIRONMENT if full and layout.environment else "",
        _BUILTIN_LINE if full else "",
        _dates(layout),
        _TOLD_IN_SYSTEM if in_system else "",
        _fill(_SYSTEM_WITHOUT_MESSAGE, CLOSING=closing) if opened else "",
        _fill(_MESSAGE, QUOTED="" if layout.tool_results == "json" else "and content is not string"),
        _fill(_SYSTEM_OPENING, CLOSING=closing) if opened else "",
        _USER_OPENING if told and not in_system else "",
        _calls(layout),
        _TOLD_NOBODY if told and not in_system else "",
        _fill(_END, NEWLINES="" if layout.open_header == "bare" else r"\n\n"),
    ]
    return "".join(parts).lstrip()


def _tools(layout: Layout) -> str:
    """Return the part that reads the tools, and says of them what the prompt says."""
    dialect, compact = layout.calls.dialect, layout.tool_prompt == "compact"
    told_of = "true" if compact else f'tool["name"] not in {_quoted([*BUILTINS, CODE])}'
    reading = _fill(_READ_TOOLS, BUILTINS=_quoted(BUILTINS), TOLD_OF=told_of)
    if compact:
        shape = 'tool["parameters"]'
        names = f'(({shape}["properties"] if {shape}["properties"] is mapping else {shape}) | list | join(", "))'
        line = f'(tool["name"] ~ "(" ~ {names} ~ "): " ~ tool["description"])'
        return reading + _fill(_TELL, BETWEEN=_quoted("\n"), DESCRIBED=line)
    if dialect == "python_list":
        telling = _TELL_ALL
    else:
        described = '({"type": "function", "function": tool} | tojson(indent=4))'
        if dialect == "function_tag":
            start = r""""Use the function '" ~ tool["name"] ~ "' to '" ~ tool["description"]"""
            described = rf"""({start} ~ "':\n" ~ (tool | tojson))"""
        telling = _fill(_TELL, BETWEEN=_quoted("\n\n"), DESCRIBED=described)
    before, after = map(_quoted, wording(dialect, layout.tools_in))
    return reading + telling + _fill(_FRAME, BEFORE=before, AFTER=after)


def _dates(layout: Layout) -> str:
    if layout.dates is None:
        return ""
    blank = {"lines": r'"\n"', "documents": r'("\n" if ns.builtins else "\n\n")'}
    return _fill(
        _DATES,
        BLANK=blank.get(layout.opening, r'("\n\n" if ns.builtins else "\n")'),
        CUTOFF=_quoted(f"Cutting Knowledge Date: {layout.dates[0]}\nToday Date: "),
        TODAY=_quoted(layout.dates[1]),
    )


def _calls(layout: Layout) -> str:
    """Return the part that writes a message's calls and its end."""
    style = layout.calls
    listed = style.dialect == "python_list"
    every = _fill(_EACH_CALL, OTHERWISE=_otherwise(style))
    tag = '{{- "<|python_tag|>" }}'
    if layout.python_tag != "calls":
        builtins = " or ns.queries == ns.calls | length" if layout.python_tag == "builtins" else ""
        tag = f"{{%- if content{builtins} %}}{tag}{{%- endif %}}"
    unwritable = f"\n{' ' * 12}{{%- set ns.json = ns.json or given is string %}}"
    mixed = f"\n{' ' * 8}{{%- set ns.json = ns.json or (ns.queries and ns.queries < ns.calls | length) %}}"
    return _fill(
        _CALLS,
        BUILTINS=_quoted(BUILTINS),
        CODE=_quoted(CODE),
        UNWRITABLE=unwritable if listed else "",
        MIXED=mixed if listed else "",
        TAG=tag + f"\n{' ' * 12}",
        WRITTEN=_fill(_PYTHON_CALLS, EACH_CALL=every) if listed else every,
        CALL_END=_quoted(specials.EOM if layout.call_end == "eom" else specials.EOT),
    )


def _otherwise(style: CallStyle) -> str:
    """Return the branches for a call that isn't written as a built-in's."""
    tojson = "tojson(ensure_ascii=true)" if style.ascii_json else "tojson"
    start = """'{"type": "function", "name": '""" if style.typed else """'{"name": '"""
    as_json = _fill(_JSON_CALL, START=start, TOJSON=tojson)
    if style.dialect != "function_tag":
        return f"{{%- else %}}{as_json}"
    return f"{{%- elif ns.json %}}{as_json}\n{' ' * 16}{{%- else %}}{_fill(_TAG_CALL, TOJSON=tojson)}"


def _fill(block: str, **values: str) -> str:
    return Template(block).substitute(values)


def _quoted(value: object) -> str:
    """Return text, or a list of texts, as a Jinja literal. Escapes beyond U+FFFF aren't Jinja's: none are written."""
    return json.dumps(value, ensure_ascii=False)
