"""Other job queues, each in a small adapter that runs in an environment of its own (see ``install``)."""
