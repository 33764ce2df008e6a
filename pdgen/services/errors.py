"""Errors of outside services: one line each, naming the host and the cause, never a key.

They are OSErrors, as those of sockets are: a command ends with status 2 and the line.
"""

from pdgen.services import budget


class ServiceError(OSError):
  """A service gave no answer that can be used."""

  cost = budget.Cost()  # What the failed call has used, its retries included.


class Unavailable(ServiceError):
  """No answer within the tries and the time: rate limits, errors of the server, timeouts, broken connections."""


class Refused(ServiceError):
  """The service will not answer this request, now or later: key, model, arguments, moderation."""


class BadAnswer(ServiceError):
  """An answer came, of the wrong form: asking for it once more did not help."""


class BudgetExhausted(ServiceError):
  """The next request might exceed the budget. It was not sent."""
