"""The wire contract as pydantic models: messages, events, records, errors. Imports nothing of the project."""
