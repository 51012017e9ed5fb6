"""Which heads and neurons do what: scores from repeated random tokens, and statistics over a corpus."""
