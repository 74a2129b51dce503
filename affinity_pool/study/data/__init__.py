"""What is listened to: recordings, manifests, word times."""
