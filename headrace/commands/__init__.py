"""The commands of `headrace`, one function each, with their options. A command imports what it needs when it runs."""
