"""The sidecar's control plane: carries the Rust data plane's commands, and nothing of its rules."""
