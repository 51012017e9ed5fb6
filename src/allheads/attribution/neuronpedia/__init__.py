"""Attribution graphs as the files that Neuronpedia, circuit-tracer and Anthropic's page read."""
