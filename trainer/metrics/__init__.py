"""Predictions scored before anything is learned from their outcomes, beside baselines."""
