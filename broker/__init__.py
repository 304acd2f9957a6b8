"""EMQ's broker: clients, workers and people meet the queue here."""

__version__ = "0.1.0"
