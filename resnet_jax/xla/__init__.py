"""The compiler: its options, its caches, its targets, and what it made of a program."""
