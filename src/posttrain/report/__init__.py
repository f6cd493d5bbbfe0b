"""L6: tables, figures, pages."""
