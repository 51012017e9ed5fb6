"""What training makes of heads: MLPs, their tied and their untied twins from the same start."""
