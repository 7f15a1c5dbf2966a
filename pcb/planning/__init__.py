"""What a study would do and cost, and how far it is."""
