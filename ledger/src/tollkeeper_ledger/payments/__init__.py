"""Payment providers and mail: exact bytes, how they are sent, how events are trusted. Nobody else speaks to them."""
