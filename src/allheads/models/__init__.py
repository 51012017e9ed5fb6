"""The only room that names architectures, transformers or bridges: loading, reading MLPs, building twins."""
