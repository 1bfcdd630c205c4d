r"""How a conversation becomes tokens: the templates of three families, turn after turn.

    nano    <|instruct_mark|> question <|response_mark|> answer <|eos|>
    chatml  <|im_start|>system\n…<|im_end|>\n  <|im_start|>user\n question <|im_end|>\n<|im_start|>assistant\n answer …
    llama3  <|start_header_id|>user<|end_header_id|>\n\n question <|eot_id|> …, after <|begin_of_text|>

Chat templates of model makers are programs (Jinja); none is run here. The family is recognised from the template's
text, or without one from the special tokens; a template of no family is said to be so. What the user writes never
becomes a special token.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from nano_ds.errors import UserError
from nano_ds.tokenizer import Codec

_ROLE = r"""['"]\s*[+~]\s*message(?:\[['"]role['"]\]|\.role)\s*[+~]\s*['"]"""
_BREAK = r"(?:\n|\\n)"
# How each family's template writes the head of a message, and the special tokens that it needs.
FAMILIES = {
    "nano": (r"<\|instruct_mark\|>", ("<|instruct_mark|>", "<|response_mark|>", "<|eos|>")),
    "chatml": (rf"<\|im_start\|>(?:{_ROLE}|user){_BREAK}", ("<|im_start|>", "<|im_end|>")),
    "llama3": (
        rf"<\|start_header_id\|>(?:{_ROLE}|user)<\|end_header_id\|>{_BREAK}{{2}}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}
_DEFAULT_SYSTEM = re.compile(rf"<\|im_start\|>system{_BREAK}([^'\"{{<]+)<\|im_end\|>")


def template_of(tokenizer: Codec) -> Template:
    """The template that a tokenizer's model was tuned on.

    Raises:
        UserError: it was tuned on none, or on one of no known family.
    """
    text: str | None = getattr(tokenizer, "chat_template", None)
    for family, (head, needed) in FAMILIES.items():
        if all(t in tokenizer.special for t in needed) and (text is None or re.search(head, text)):
            return Template(tokenizer, family, text or "")
    if text is not None:
        raise UserError(
            f"this model's chat template is of no family that nano_ds knows ({', '.join(FAMILIES)}); generate without "
            "-i, and write its marks into the prompt with --special"
        )
    raise UserError(
        "this model's vocabulary has no marks of a conversation, such as <|instruct_mark|>: it was not made for "
        "instructions; generate without -i"
    )


@dataclass(frozen=True)
class Template:
    """A family, its tokens, and what the maker's own text says beside."""

    tokenizer: Codec
    family: str
    text: str = ""
    date: str = ""  # what a template that names the day gets; empty: today

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        last = FAMILIES[self.family][1][-1]
        return tuple(dict.fromkeys([self.tokenizer.special[last], *self.tokenizer.stop_ids]))

    def opening(self, system: str | None = None) -> list[int]:
        """What stands before the first question.

        ``system``: None is the template's own system prompt, if it has one; an empty text is none, as in the C engine.

        Raises:
            UserError: the family has no place for a system prompt.
        """
        if self.family == "nano":
            if system:
                raise UserError("--system: this model's template has no place for it; say it in the question")
            return self.tokenizer.bos_ids
        ids = self.tokenizer.bos_ids
        bos = getattr(self.tokenizer, "bos", None)
        if not ids and bos is not None and ("bos_token" in self.text or (self.family == "llama3" and not self.text)):
            ids = [bos]
        if self.family == "chatml" and system is None:
            default = _DEFAULT_SYSTEM.search(self.text)
            system = default[1].replace("\\n", "\n") if default else None
        system = self._trimmed(system) if system is not None else None
        if self.family == "llama3" and "Cutting Knowledge Date" in self.text:
            system = f"Cutting Knowledge Date: December 2023\nToday Date: {self._date()}\n\n{system or ''}"
        return ids if not system else [*ids, *self._message("system", system)]

    def question(self, text: str) -> list[int]:
        """The ids that ask ``text`` and begin the answer."""
        special = self.tokenizer.special
        if self.family == "nano":
            return [special["<|instruct_mark|>"], *self.tokenizer.encode(text), special["<|response_mark|>"]]
        return [*self._message("user", self._trimmed(text)), *self._head("assistant")]

    def answer(self, made: Sequence[int]) -> list[int]:
        """A finished answer, as it stands before the next question; what a model thought is not repeated to it."""
        kept = list(made)
        if "</think>" in self.text and "</think>" in (said := self.tokenizer.decode(kept)):
            kept = self.tokenizer.encode(said.split("</think>")[-1].lstrip("\n"))
        return [*kept, *self._foot()]

    def exchange(self, question: str, answer: str, last: bool = True) -> tuple[list[int], list[bool]]:
        """A question with its answer, to learn from: the ids, and which of them carry loss (the answer and its end).

        Before another exchange (not ``last``) the answer stands as it would in a conversation, without its thoughts.
        """
        asked, made = self.question(question), self.tokenizer.encode(self._trimmed(answer))
        behind = len(self._foot()) - 1  # the line break after ChatML's end: no model has to say it
        if last:
            said = [*made, *self._foot()[:1]]
            behind = 0
        else:
            said = self.answer(made)
        loss = [False] * len(asked) + [True] * (len(said) - behind) + [False] * behind
        return [*asked, *said], loss

    def _head(self, role: str, content: str = "") -> list[int]:
        special, encode = self.tokenizer.special, self.tokenizer.encode
        if self.family == "chatml":
            return [special["<|im_start|>"], *encode(f"{role}\n{content}")]
        ends = special["<|end_header_id|>"]
        return [special["<|start_header_id|>"], *encode(role), ends, *encode(f"\n\n{content}")]

    def _foot(self) -> list[int]:
        special = self.tokenizer.special
        if self.family == "nano":
            return [special["<|eos|>"]]
        if self.family == "chatml":
            return [special["<|im_end|>"], *self.tokenizer.encode("\n")]
        return [special["<|eot_id|>"]]

    def _message(self, role: str, content: str) -> list[int]:
        return [*self._head(role, content), *self._foot()]

    def _trimmed(self, content: str) -> str:
        return content.strip() if self.family == "llama3" else content

    def _date(self) -> str:
        """Today in Llama 3.2's template, the day that Llama 3.1's names."""
        if "strftime_now" in self.text:
            return self.date or time.strftime("%d %b %Y")
        named = re.search(r"""date_string\s*=\s*['"]([^'"]+)['"]""", self.text)
        return named[1] if named else "26 Jul 2024"


def fit(history: Sequence[list[int]], room: int) -> list[int]:
    """The newest turns that fit into ``room`` tokens, oldest first; the last turn is always there."""
    kept: list[int] = list(history[-1])
    for old in reversed(history[:-1]):
        if len(old) + len(kept) > room:
            break
        kept = [*old, *kept]
    return kept
