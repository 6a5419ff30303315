"""Payment providers: requests as exact bytes, how they are sent, how events are trusted. Only this room speaks HTTP."""
