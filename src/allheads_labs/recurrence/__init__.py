"""Self-attention against recurrence: what each recalls, by load and by distance."""
