"""How the tools on offer are told to the model: the official wordings of each dialect, and a compact one.

The full wordings are those that Meta's models were trained on: for JSON the chat template of Llama 3.1, for
function tags its prompt format page, for Python lists that of Llama 3.2. They are not to be improved.
"""

import json
from collections.abc import Sequence
from typing import Literal

from herd.base.messages import Tool
from herd.tokenizer.tool_dialects import BUILTINS, CODE, Dialect

ToolPrompt = Literal["full", "compact", "none"]
Place = Literal["user", "system"]

_JSON_IN_USER = (
    "Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt."
)
_JSON_IN_SYSTEM = (
    "You have access to the following functions. To call a function, please respond with JSON for a function call."
)
_JSON_FORM = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables."
)
_FUNCTION_TAG_FORM = """Think very carefully before calling functions.
If you choose to call a function ONLY reply in the following format with no prefix or suffix:

<function=example_function_name>{"example_name": "example_value"}</function>

Reminder:
- If looking for real time information use relevant functions before falling back to brave_search
- Function calls MUST follow the specified format, start with <function= and end with </function>
- Required parameters MUST be specified
- Only call one function at a time
- Put the entire function call reply on one line"""
_PYTHON_LIST_FORM = """You are an expert in composing functions. \
You are given a question and a set of possible functions.
Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the function can be used, point it out. If the given question lacks the parameters required by \
the function, also point it out. You should only return the function call in tools call sections.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]
You SHOULD NOT include any other text in the response.

Here is a list of functions in JSON format that you can invoke.
"""


def tool_prompt(tools: Sequence[Tool], *, style: ToolPrompt, dialect: Dialect, place: Place) -> str:
    """Return the text that tells of the tools, without a closing blank line; empty for none."""
    if style == "none" or not tools:
        return ""
    if style == "compact":
        return "\n".join(_compact(tool) for tool in tools)
    custom = [tool for tool in tools if tool.name not in (*BUILTINS, CODE)]
    if not custom:
        return ""  # built-in tools are named on the system message's "Tools:" line
    before, after = wording(dialect, place)
    if dialect == "python_list":
        told = json.dumps([tool.to_json() for tool in custom], ensure_ascii=False, indent=4)
    else:
        told = "\n\n".join(_described(tool, dialect) for tool in custom)
    return f"{before}{told}{after}"


def wording(dialect: Dialect, place: Place) -> tuple[str, str]:
    """Return the official text that stands before the descriptions of the tools, and the one after them."""
    if dialect == "json":
        return f"{_JSON_IN_USER}\n\n{_JSON_FORM}\n\n" if place == "user" else f"{_JSON_IN_SYSTEM}{_JSON_FORM}\n\n", ""
    if dialect == "function_tag":
        return "You have access to the following functions:\n\n", f"\n\n{_FUNCTION_TAG_FORM}"
    return f"{_PYTHON_LIST_FORM}\n", ""


def builtin_line(tools: Sequence[Tool]) -> str:
    """Return the system message's "Tools:" line for built-in tools, or nothing; code needs no line."""
    names = [tool.name for tool in tools if tool.name in BUILTINS]
    return f"Tools: {', '.join(names)}" if names else ""


def _described(tool: Tool, dialect: Dialect) -> str:
    row = tool.to_json()
    if dialect == "json":
        return json.dumps({"type": "function", "function": row}, ensure_ascii=False, indent=4)
    return f"Use the function '{tool.name}' to '{tool.description}':\n{json.dumps(row, ensure_ascii=False)}"


def _compact(tool: Tool) -> str:
    properties = tool.parameters.get("properties")
    names = list(properties) if isinstance(properties, dict) else list(tool.parameters)
    return f"{tool.name}({', '.join(names)}): {tool.description}"
