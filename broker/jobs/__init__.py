"""What a submit means: validation, requirements, explanations, records."""
