"""From a camera to whoever must know: sources, the watch over them, events, sinks, the page."""
