"""Pictures, weights and manifests on disk: read safely, written atomically."""
