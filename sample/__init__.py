"""A small bank that shows what one request, one unit of work, looks like in an application."""
