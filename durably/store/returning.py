"""UPDATE ... RETURNING, for every database: in one statement where it can, else in three of the same transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from durably.store.tables import runs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, Row, Select, Update

_these = runs.c.id.in_(bindparam("ids", expanding=True))


class ReturningUpdate:
    """
    Changes the runs that a query chooses, and gives them back as they are then.

    Args:
        chosen: Selects ids, locking their rows where the database locks rows.
        change: Updates runs; its conditions hold for all that are chosen, or for none.
        columns: What is given back.
    """

    def __init__(self, chosen: Select[Any], change: Update, columns: Sequence[ColumnElement[Any]]) -> None:
        self._chosen = chosen
        # Apart from the update's own query, because a planner may execute that once for each row, and a limit with
        # it; PostgreSQL executes one that locks rows once when it stands in WITH.
        once = chosen.cte("chosen")
        self._in_one = change.where(runs.c.id.in_(select(once.c.id))).returning(*columns)
        self._change = change.where(_these)
        self._changed = select(*columns).where(_these)

    def execute(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """
        Change and give back, in no particular order.

        Args:
            connection: In a write transaction.
            values: Of the parameters of both statements.
        """
        if connection.dialect.update_returning:
            return connection.execute(self._in_one, values).all()
        these = {"ids": connection.execute(self._chosen, values).scalars().all()}
        if not these["ids"] or not connection.execute(self._change, {**values, **these}).rowcount:
            return []
        return connection.execute(self._changed, these).all()
