"""Matching of predictions with objects, and losses."""
