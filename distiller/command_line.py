"""Owns the words of the command line: commands, arguments, their help and examples. Must not know what they do."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

Command = Callable[[argparse.Namespace], int]


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser; what it parses has the command's function as `command`, whose docstring is the command's help."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, help="settings file (default: ./stillroom.toml where it exists)")
    scripted = argparse.ArgumentParser(add_help=False)
    scripted.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser = argparse.ArgumentParser(
        prog="stillroom",
        description="Turn the traffic you pay for into a model you own.",
        epilog="Start with: stillroom demo",
    )
    adding = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, example: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        text = (commands[name].__doc__ or "").strip()
        made = adding.add_parser(
            name, help=text.rstrip("."), description=text, epilog=f"example: {example}", parents=list(parents)
        )
        made.set_defaults(command=commands[name])
        return made

    add("serve", "stillroom serve --config stillroom.toml", shared)
    made = add("demo", "stillroom demo --traffic recorded.jsonl")
    made.add_argument("--traffic", type=Path, help="recorded traffic; without it, traffic is generated")
    made.add_argument("--folder", type=Path, default=Path("demo-data"), help="where the demo works (made anew)")
    add("tasks", "stillroom tasks --json", shared, scripted)
    reasoned = ("rollback", "freeze")
    for name in ("forecast", "distill", "certificate", "promote", "rollback", "freeze"):
        extra = () if name == "certificate" else (scripted,)
        example = f"stillroom {name} triage-support-tickets-1f3a9c2e"
        made = add(name, example + (' --reason "wrong on refunds"' if name in reasoned else ""), shared, *extra)
        made.add_argument("task", metavar="TASK", help="a name from `stillroom tasks`")
        if name in ("certificate", "promote"):
            told = "from `stillroom rivals TASK` (default: the newest)"
            made.add_argument("--candidate", metavar="ID", default="", help=told)
        if name in reasoned:
            made.add_argument("--reason", required=True, help="kept in the log")
        if name == "freeze":
            made.add_argument("--off", action="store_true", help="thaw it")
        if name == "certificate":
            made.add_argument("--output", type=Path, metavar="FILE", help="write the JSON here")
            made.add_argument("--html", type=Path, metavar="FILE", help="write a page for reading here")
            made.add_argument("--without-examples", action="store_true", help="quote no recorded traffic")
    made = add("explain", "stillroom explain triage-support-tickets-1f3a9c2e --budget 2.50", shared, scripted)
    made.add_argument("task", metavar="TASK", help="a name from `stillroom tasks`")
    in_all = "in all for this task, earlier runs included"
    made.add_argument("--budget", type=float, required=True, metavar="USD", help=f"US dollars, {in_all}")
    made.add_argument("--share", type=float, default=0.2, help="of the exchanges to learn from (default: 0.2)")
    made.add_argument("--most", type=int, metavar="N", help=f"questions, {in_all}; needed for a model without a price")
    made = add("lineage", "stillroom lineage student-3fa9c2e81b07 --rebuild", shared, scripted)
    made.add_argument("student", metavar="STUDENT", help="a name from `stillroom status`")
    made.add_argument("--rebuild", action="store_true", help="train it again from its exchanges and compare every file")
    made = add("rivals", "stillroom rivals triage-support-tickets-1f3a9c2e", shared, scripted)
    made.add_argument("task", metavar="TASK", help="a name from `stillroom tasks`")
    made = add("export", "stillroom export triage-support-tickets-1f3a9c2e --gguf q8_0 q4_1-lora", shared, scripted)
    made.add_argument("task", metavar="TASK", help="a name from `stillroom tasks`")
    made.add_argument("--candidate", metavar="ID", default="", help="a student of the task (default: the newest)")
    kinds = ["q8_0", "q4_0", "q4_1", "q4_1-lora", "bf16"]
    told = "for llama.cpp: q8_0 (the default), q4_0, q4_1, bf16, or q4_1-lora: the base in four bits, adapter apart"
    made.add_argument("--gguf", nargs="*", choices=kinds, metavar="KIND", help=told)
    told = "for vLLM, made by llm-compressor: fp8 (the default), or w4a16: four bits, fitted to the task"
    made.add_argument("--vllm", nargs="*", choices=["fp8", "w4a16"], metavar="KIND", help=told)
    told = "base and adapter as one folder of safetensors; with q8_0 what is made where nothing is asked for"
    made.add_argument("--merged", action="store_true", help=told)
    made.add_argument("--to", type=Path, metavar="FOLDER", help="put them here (default: exports in the home folder)")
    made = add("edge", "stillroom edge triage-support-tickets-1f3a9c2e --port 8200", shared)
    made.add_argument("task", metavar="TASK", help="a name from `stillroom tasks`, or the folder of an exported file")
    made.add_argument("--candidate", metavar="ID", default="", help="a student of the task (default: the newest)")
    made.add_argument("--port", type=int, metavar="P", help="on loopback (default: edge.port)")
    made = add("verify", "stillroom verify certificate.json", shared, scripted)
    made.add_argument("file", type=Path, metavar="FILE", help="from `stillroom certificate TASK --output FILE`")
    made = add("gold", "stillroom gold answers.jsonl", shared, scripted)
    line = 'JSON Lines: {"exchange": ID, "answer": TEXT} or {"request": MESSAGES or chat body, "answer": TEXT}'
    made.add_argument("file", type=Path, metavar="FILE", help=line)
    made = add("keys", "stillroom keys create billing-bot --model gpt-4o --budget 50", shared, scripted)
    made.add_argument("action", choices=["create", "list", "revoke"])
    made.add_argument("name", metavar="NAME", nargs="?", help="who the key is for")
    made.add_argument("--model", action="append", default=[], help="allow only this model; may be repeated")
    made.add_argument("--requests-per-minute", type=int, metavar="N", help="over all workers")
    made.add_argument("--tokens-per-minute", type=int, metavar="N", help="prompts and answers")
    made.add_argument("--budget", type=float, metavar="USD", help="US dollars a calendar month (UTC)")
    made.add_argument("--no-capture", action="store_true", help="record nothing of what this key is used for")
    made = add("erase", "stillroom erase --user customer-1234 --yes", shared, scripted)
    named = "as a request's user, safety_identifier or metadata.user_id, or the name of a key"
    made.add_argument("--user", required=True, metavar="ID", help=named)
    made.add_argument("--yes", action="store_true", help="do not ask")
    add("status", "stillroom status --json", shared, scripted)
    add("report", "stillroom report --json", shared, scripted)
    made = add("sql", 'stillroom sql "select task, count(*) from exchanges group by all"', shared, scripted)
    made.add_argument("query", metavar="QUERY", help="one SQL statement over exchanges, verdicts, candidates, ...")
    made = add("replay-teacher", "stillroom replay-teacher --traffic recorded.jsonl --port 9000")
    made.add_argument("--traffic", type=Path, action="append", required=True, help="recorded traffic; may be repeated")
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, default=9000)
    made.add_argument("--model", default="gpt-4o", help="listed at /v1/models")
    made.add_argument("--latency", type=float, default=0.0, help="seconds before the first byte")
    made.add_argument("--chunk-delay", type=float, default=0.0, help="seconds between chunks of a stream")
    add("doctor", "stillroom doctor --config stillroom.toml", shared, scripted)
    made = add("worker", "(started by serve)", shared)
    made.add_argument("--fd", type=int, required=True, help="the listening socket")
    made.add_argument("--number", type=int, default=1, help="its name in messages")
    made = add("controller", "(started by serve)", shared)
    made.add_argument("--fd", type=int, required=True, help="the admin port's listening socket")
    return parser
