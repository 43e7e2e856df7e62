"""One realtime conversation, pure of transport: client events in, server events out."""
