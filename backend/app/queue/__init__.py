"""The application's side of the queue: names to import, settings and shared tasks."""
