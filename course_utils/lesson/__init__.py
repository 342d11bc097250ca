"""What a person sees: figures, widgets, tables, claims."""
