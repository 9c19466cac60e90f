"""Owns asking for usage in streams for clients that did not: a splice into the request, every other byte as it was.

Must not know who relays the bytes, nor how usage is taken out of the answer again. What cannot be read is left alone.
"""

from proxy.splice import Member, body_object, object_at, spliced

_ASK = b'"include_usage":true'
_ASK_OPTIONS = b'{"include_usage":true}'


def ask_for_usage(body: bytes) -> bytes | None:
    """The request with `stream_options.include_usage` true, or None where there is nothing to inject.

    Nothing is injected unless it is a stream that does not report usage yet; options of a wrong type are the
    teacher's to refuse. Of a key given twice the last counts, as it does for JSON parsers.
    """
    if b'"stream"' not in body:
        return None
    try:
        members, close = body_object(body)
        last = {member.key: member for member in members}
        if "stream" not in last or last["stream"].value is not True:
            return None
        options = last.get("stream_options")
        if options is None:
            return spliced(body, close, close, b',"stream_options":' + _ASK_OPTIONS)
        if options.value is None:
            return spliced(body, options.at, options.end, _ASK_OPTIONS)
        return _ask_in(body, options) if isinstance(options.value, dict) else None
    except (ValueError, RecursionError):
        return None


def _ask_in(body: bytes, options: Member) -> bytes | None:
    members, close = object_at(body.decode("latin-1"), options.at)
    asked = {member.key: member for member in members}.get("include_usage")
    if asked is None:
        return spliced(body, close, close, b"," + _ASK if members else _ASK)
    if asked.value is None or asked.value is False:
        return spliced(body, asked.at, asked.end, b"true")
    return None
