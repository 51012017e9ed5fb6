"""A toy language with planted links, and whether cross-attention finds them."""
