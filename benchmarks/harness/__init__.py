"""What the scripts share: processes that are started and measured, rounds, and figures with their spread."""
