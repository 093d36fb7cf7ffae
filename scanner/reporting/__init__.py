"""What a query leaves for programs and people."""
