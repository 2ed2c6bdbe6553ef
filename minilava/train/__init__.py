"""The trainer: stages by configuration, packed batches, exact resume (paper, section 3.2; spec 6)."""
