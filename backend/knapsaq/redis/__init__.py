"""Redis: all that talks to the server, and the embedded server itself."""
