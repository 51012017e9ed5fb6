"""From a model to its twin: the pipeline, the domains of its gates, and the names of its heads."""
