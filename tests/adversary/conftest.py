"""Forked writers have no threads of the first process, either."""

from tests.one_thread import one_thread  # noqa: F401
