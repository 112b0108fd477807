"""What users and the project test with."""
