"""What stands around a cluster, as code; imported by nothing but its tests."""
