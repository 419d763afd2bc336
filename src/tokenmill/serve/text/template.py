"""Messages to the one text a chat model reads, by the checkpoint's own Jinja template.

Must not know token ids: the text is encoded with ``add_special_tokens=False``, since templates write the
special tokens themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import jinja2
from jinja2 import TemplateError, TemplateSyntaxError

from tokenmill.clock import Clock, SystemClock
from tokenmill.errors import BadRequest, ConfigError, TooLarge
from tokenmill.serve.text.files import CheckpointFiles, read_json
from tokenmill.serve.text.messages import ContentForm, Message, content_form, parse_arguments, prepare
from tokenmill.serve.text.sandbox import TemplateRefusal, make_environment

MAX_CHARS = 32 * 1024 * 1024
"""Longest rendered prompt, characters: above what any model reads, below what hurts the process."""
MAX_RENDER_S = 5.0
"""Longest render, seconds, looked at whenever the template writes something."""

_CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
_TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class ChatTemplate:
    """A checkpoint's chat template, compiled once.

    ``source``: the default template's text. Some checkpoints carry a second one named "tool_use" for
    requests with tools: ``tool_source``, else the same text.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        *,
        special_tokens: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        origin: str = "chat template",
    ) -> None:
        self._clock = clock or SystemClock()
        self._special_tokens = dict(special_tokens or {})
        environment = make_environment(self._clock)
        self._compiled: dict[str, tuple[jinja2.Template, ContentForm]] = {}
        for name, source in templates.items():
            try:
                form = content_form(environment.parse(source))
                template = environment.from_string(source)
                # Read for each render: as the chain of mappings that it is, that takes longer than rendering.
                template.globals = dict(template.globals)
                self._compiled[name] = (template, form)
            except TemplateSyntaxError as error:
                where = f"{origin}: template {name!r}, line {error.lineno}"
                raise ConfigError(f"{where}: {error.message}; mend or replace the template") from error
        if not {"default", "tool_use"} & set(self._compiled):
            raise ConfigError(f"{origin}: no template named 'default' among {sorted(templates)}; rename one")
        self.source = templates.get("default", templates.get("tool_use", ""))
        self.tool_source = templates.get("tool_use", self.source)

    @classmethod
    def load(cls, folder: Path, *, clock: Clock | None = None) -> Self | None:
        """Load from a checkpoint folder; None if it carries no template.

        ``chat_template.jinja`` (with ``additional_chat_templates/*.jinja``) comes before
        ``chat_template.json``, and that before ``chat_template`` in ``tokenizer_config.json``.

        Raises:
            ConfigError: a template cannot be read or compiled; the message names the file.
        """
        folder = Path(folder)
        files = CheckpointFiles.read(folder)
        for origin, value in (
            (folder / "chat_template.jinja", _read_jinja(folder)),
            (folder / "chat_template.json", read_json(folder / "chat_template.json").get("chat_template")),
            (folder / "tokenizer_config.json", files.tokenizer_config.get("chat_template")),
        ):
            if value:
                templates = _named(value, str(origin))
                return cls(templates, special_tokens=files.special_tokens(), clock=clock, origin=str(origin))
        return None

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        /,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: object,
    ) -> str:
        """Return the prompt for ``messages`` (OpenAI's form, plain JSON values).

        ``add_generation_prompt``: end with the header of the assistant's answer.
        ``continue_final_message``: end inside the last message, for the model to go on with. Other
        keywords reach the template as variables (``enable_thinking``) and may override special tokens.

        Raises:
            BadRequest: the messages do not fit the template; the message is the template's own where it
                has one, and ``param`` names the field where it is known.
            TooLarge: the prompt is longer than ``MAX_CHARS`` or took longer than ``MAX_RENDER_S``.
        """
        if continue_final_message and add_generation_prompt:
            raise BadRequest(
                "continue_final_message and add_generation_prompt exclude each other; set one to false",
                param="continue_final_message",
            )
        template, form = self._choose(with_tools=tools is not None)
        prepared = prepare(messages, form)
        final = _mark_final(prepared) if continue_final_message else ""
        variables: dict[str, object] = {
            **self._special_tokens,
            **kwargs,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._render_calls(template, prepared, variables)
        return _cut_after_final(text, final) if continue_final_message else text

    def _choose(self, *, with_tools: bool) -> tuple[jinja2.Template, ContentForm]:
        first, second = ("tool_use", "default") if with_tools else ("default", "tool_use")
        return self._compiled[first] if first in self._compiled else self._compiled[second]

    def _render_calls(
        self, template: jinja2.Template, messages: list[Message], variables: dict[str, object]
    ) -> str:
        """Render with tool calls' arguments as objects; where the template wants their JSON text, as that."""
        as_sent = [dict(message) for message in messages]
        try:
            if parse_arguments(messages):
                with suppress(TypeError):
                    return self._run(template, messages, variables)
            return self._run(template, as_sent, variables)
        except TemplateRefusal as error:
            raise BadRequest(
                error.message or "the chat template refused the messages", param="messages"
            ) from error
        except (TemplateError, *_TEMPLATE_FAULTS) as error:
            raise BadRequest(
                f"the model's chat template cannot render these messages: {error}", param="messages"
            ) from error

    def _run(self, template: jinja2.Template, messages: list[Message], variables: dict[str, object]) -> str:
        deadline_s = self._clock.now() + MAX_RENDER_S
        written: list[str] = []
        chars = 0
        for text in template.generate({**variables, "messages": messages}):
            written.append(text)
            chars += len(text)
            if chars > MAX_CHARS or self._clock.now() > deadline_s:
                raise TooLarge(
                    f"the rendered chat is longer than {MAX_CHARS} characters or took longer than "
                    f"{MAX_RENDER_S:g} s; send fewer or shorter messages",
                    param="messages",
                )
        return "".join(written)


def _mark_final(messages: list[Message]) -> str:
    """Put a mark at the end of the last message's text; return the text."""
    last = messages[-1]
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _CONTINUE_MARK
        return content
    if isinstance(content, list) and content:
        text = str(content[-1]["text"])
        last["content"] = [*content[:-1], {**content[-1], "text": text + _CONTINUE_MARK}]
        return text
    param = f"messages[{len(messages) - 1}].content"
    raise BadRequest(f"{param} is missing: continue_final_message needs a text to continue", param=param)


def _cut_after_final(text: str, final: str) -> str:
    """Cut behind the marked message; where the template trimmed the mark's space, trim the message too."""
    at = text.rfind(_CONTINUE_MARK.strip())
    if at < 0 or final.strip() not in text:
        raise BadRequest(
            "the chat template leaves out or changes the final message, so it cannot be continued; "
            "set continue_final_message to false",
            param="continue_final_message",
        )
    return text[:at] if text.startswith(_CONTINUE_MARK, at) else text[:at].rstrip()


def _read_jinja(folder: Path) -> dict[str, str]:
    """Return the templates kept as files of their own: "default" and the additional ones by file name."""
    paths = {"default": folder / "chat_template.jinja"}
    paths.update({path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))})
    if not paths["default"].is_file():
        return {}
    try:
        return {name: path.read_text("utf-8") for name, path in paths.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder}: a chat template cannot be read ({error}); fetch it again") from error


def _named(value: object, origin: str) -> dict[str, str]:
    """Return templates by name from the forms that files give them in."""
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        try:
            value = {entry["name"]: entry["template"] for entry in value}
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{origin}: chat_template: each entry needs a name and a template") from error
    if isinstance(value, dict) and all(isinstance(source, str) for source in value.values()):
        return value
    raise ConfigError(f"{origin}: chat_template must be a string or a list of named strings")
