"""Owns the live view in a terminal: when it looks, which keys do what. What it shows is `distiller.top_text`'s.

A look happens in a thread, one at a time, so that no key waits for the log.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, Static

from distiller.frame import Frame
from distiller.tasks_now import TaskDetail, TaskNow
from distiller.top_text import SORTS, View, caption, chosen, columns, detail, figures, head

Look = Callable[[datetime], Frame]
Detail = Callable[[str], TaskDetail | str]


class TaskScreen(Screen[None]):
    """One task, until Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "app.pop_screen", "back")]

    def __init__(self, text: str) -> None:
        """`text` is shown as it is."""
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """The text, which scrolls, and the keys."""
        with VerticalScroll():
            yield Static(self._text, id="detail", markup=False)
        yield Footer()


class Tasks(DataTable[Text]):
    """The list, whose key for a task the footer names."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "task")]


class Top(App[None]):
    """Looks every few seconds until it is left."""

    TITLE = "Stillroom"
    ENABLE_COMMAND_PALETTE = False
    CSS = "#tasks { height: 1fr; } #part { display: none; border: none; height: 1; } #part.asked { display: block; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", "reverse"),
        Binding("slash", "part", "filter"),
        Binding("p", "pause", "pause"),
        Binding("escape", "all", "all tasks", show=False),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", show=False, priority=True),
    ]

    def __init__(self, look: Look, look_up: Detail, seconds: float) -> None:
        """`look` and `look_up` are called in a thread, never both at once."""
        super().__init__()
        self._look, self._look_up, self._seconds = look, look_up, seconds
        self._turn = asyncio.Lock()
        self._frame: Frame | None = None
        self._tasks: list[TaskNow] = []  # as they are listed
        self._view, self._paused, self._width = View(), False, 0

    def compose(self) -> ComposeResult:
        """From above: the head, the figures, what is listed, the list, the filter, the keys."""
        yield Static("looking ...", id="head", markup=False)
        yield Static(id="figures", markup=False)
        yield Static(id="caption", markup=False)
        yield Tasks(id="tasks", cursor_type="row", zebra_stripes=True)
        yield Input(id="part", placeholder="part of a task's name", compact=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self.query_one(Tasks).focus()
        self.run_worker(self._looking())

    async def _looking(self) -> None:
        while True:
            if not self._paused:
                async with self._turn:
                    self._frame = await asyncio.to_thread(self._look, datetime.now(UTC))
                self._show()
            await asyncio.sleep(self._seconds)

    def on_resize(self, event: Resize) -> None:
        """Other widths have other columns; the app's own size still is the one before."""
        self._width = event.size.width
        self._show()

    def action_sort(self) -> None:
        """By the next of SORTS."""
        names = list(SORTS)
        self._change(replace(self._view, sort=names[(names.index(self._view.sort) + 1) % len(names)]))

    def action_reverse(self) -> None:
        """The other way round."""
        self._change(replace(self._view, backwards=not self._view.backwards))

    def action_pause(self) -> None:
        """Look no more, or again."""
        self._paused = not self._paused
        self._show()

    def action_part(self) -> None:
        """Ask for a part of the name."""
        self.query_one(Input).add_class("asked").focus()

    def action_all(self) -> None:
        """Without a filter."""
        self.query_one(Input).value = ""
        self._close_input()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        self._change(replace(self._view, part=event.value))

    def on_input_submitted(self) -> None:
        """Keep the filter."""
        self._close_input()

    def _close_input(self) -> None:
        self.query_one(Input).remove_class("asked")
        self.query_one(Tasks).focus()

    async def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Show one task; of exchanges without one there is nothing more to say."""
        if (task := self._tasks[event.cursor_row].task) is None:
            return
        async with self._turn:
            found = await asyncio.to_thread(self._look_up, task)
        await self.push_screen(TaskScreen(found if isinstance(found, str) else detail(found)))

    def _change(self, view: View) -> None:
        self._view = view
        self._show()

    def _show(self) -> None:
        """Everything as of the last look, also while one task is looked at; the cursor stays with its task."""
        frame = self._frame
        if frame is None:
            return
        home, width = self.screen_stack[0], self._width
        table = home.query_one(Tasks)
        kept = [self._tasks[table.cursor_row].task] if self._tasks else []
        self._tasks = tasks = chosen(frame.logged.tasks, self._view)
        home.query_one("#head", Static).update(head(frame, self._paused))
        home.query_one("#figures", Static).update("\n".join(figures(frame, width)))
        home.query_one("#caption", Static).update(caption(tasks, frame, self._view))
        shown = columns(width)
        table.clear(columns=True)
        table.add_columns(*(Text(column.title) for column in shown))
        for task in tasks:
            table.add_row(*(Text(c.cell(task), justify="right" if c.right else "left") for c in shown))
        table.move_cursor(row=next((row for row, task in enumerate(tasks) if task.task in kept), 0))
