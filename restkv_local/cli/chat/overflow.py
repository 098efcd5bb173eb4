"""What to do when a question does not fit the context, in the words of the chat."""

from __future__ import annotations

from ...errors import ContextOverflow
from .session import Session


def way_out(error: ContextOverflow, session: Session, *, typed: bool) -> str:
    """One sentence. typed: in a conversation, where commands can be typed."""
    room = suggestion(error.needed + session.sampling.answer)
    what = "the conversation with this question" if session.messages else "this question"
    with_ = " and its documents" if session.documents else ""
    said = f"{what}{with_} takes {error.needed:,} positions and the context has {error.context:,}"
    if not typed:
        return f"{said}; give it more with --context {room}, or less text"
    if session.messages:
        return f"{said}; /drop forgets the oldest question, /clear all of them; or start with --context {room}"
    first = "/clear forgets the documents" if session.documents else "make it shorter"
    return f"{said}; {first}, or start with --context {room}"


def suggestion(positions: int) -> str:
    """A context that holds so many positions, as it is typed: a power of two."""
    context = 1024
    while context < positions:
        context *= 2
    return f"{context // 1024}k"
