"""SQLAlchemy's own test suite for dialects, on a riding engine and on a plain one."""
