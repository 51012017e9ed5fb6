"""Reading a twin by its weights only: circuits through the embeddings, and composition over every pair."""
