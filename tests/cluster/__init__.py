"""Tests on a real Kubernetes: its API server alone, or whole nodes with kubelets and containers."""
