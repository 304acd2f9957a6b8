"""The pages for people: rendered here, refreshed by htmx, usable without JavaScript."""
