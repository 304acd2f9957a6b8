"""EMQ's broker: clients, workers and people meet the queue here."""
