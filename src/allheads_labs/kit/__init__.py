"""What all experiments share: units of work that are done once and kept, small models, statistics, and tables."""
