"""The `fewrec` command: one file a sub-command; each is imported only when it is called."""
