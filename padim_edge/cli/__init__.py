"""The command line: one file a command, each parsing, importing late, making one call, printing."""
