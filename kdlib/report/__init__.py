"""What runs come to: their records, tables and pages."""
