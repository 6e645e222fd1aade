"""What `culvert check` looks at in a cluster: before an installation, and an installation itself."""
