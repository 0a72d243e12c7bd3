"""Jobs over HTTP: what a route answers after it has queued one, and how it went."""
