"""What goes with other libraries: one module for each, which is imported where that library is installed."""
