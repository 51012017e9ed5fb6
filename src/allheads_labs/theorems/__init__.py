"""The theorems of Huben & Morris 2023 (arXiv 2309.08593) as constructions that run, and what lies beyond them."""
