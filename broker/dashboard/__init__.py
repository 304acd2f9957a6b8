"""The pages for people: rendered here, live by htmx, complete without JavaScript. See ``docs/dashboard.md``."""
