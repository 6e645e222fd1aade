"""What several tests need: virtual time, certificates, small peers."""
